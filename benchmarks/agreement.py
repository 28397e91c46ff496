"""Whether a search ranks its best candidates as the full evaluation does.

    python benchmarks/agreement.py --run runs/50-any-default-0

The best 20 candidates of a finished run, in the order of the search (the dearest rung that each
reached, then its value), are pruned in full and measured on 16 windows of the search text that
the search has not seen. Writes benchmarks/results/agreement-*.json as it goes, and agreement.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import read_lines, write_atomic
from pruner_zero.metric import parse
from pruner_zero.models import load_model
from pruner_zero.search.archive import JOURNAL
from pruner_zero.search.build import build_evaluator, search_windows
from pruner_zero.search.evaluator import RUNGS
from pruner_zero.search.settings import SearchSettings
from pruner_zero.search.statistics import kendall
from pruner_zero.text import load_corpus
from search import summary

HERE = Path(__file__).parent
BEST, FRESH = 20, 16


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a search")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    progress = LineProgress()
    lines = read_lines(given.run / JOURNAL)
    best = ranked(lines)[:BEST]
    file = HERE / "results" / f"agreement-{given.run.name}.json"
    found: dict[str, Any] = {"run": cost(given.run), "rows": []}
    if file.exists():
        found["rows"] = json.loads(file.read_text())["rows"]
    settings = SearchSettings.model_validate(
        json.loads((given.run / "run.json").read_text())["settings"]
    )
    model, text = load_model(settings.model), load_corpus(settings.calibration)
    # Windows of one seed are drawn in one order: the first are those that the search had.
    more = settings.model_copy(update={"search_windows": settings.search_windows + FRESH})
    windows, judged = search_windows(more, text, load_corpus(settings.search_text), model.tokenizer)
    evaluator = build_evaluator(model, settings, windows, judged, progress=progress)
    fresh = judged.tokens[settings.search_windows :]
    write_atomic(file, json.dumps(found, indent=2) + "\n")
    known = {row["number"] for row in found["rows"]}
    for line in progress.track(best, "candidates", len(best)):
        if line["number"] in known:
            continue
        start = time.monotonic()
        losses = evaluator.masked.losses(parse(line["expression"]), line["scope"], fresh)
        row = {name: line[name] for name in ("number", "expression", "scope", "rung", "value")}
        seconds = round(time.monotonic() - start, 1)
        found["rows"].append({**row, "loss": statistics.mean(losses), "seconds": seconds})
        write_atomic(file, json.dumps(found, indent=2) + "\n")
    write_page()


def ranked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct candidates of a journal that ran on text, best first."""
    judged = [
        line
        for line in lines
        if line["kind"] == "candidate" and line["same_as"] is None and line["rung"] >= 2
    ]
    return sorted(judged, key=lambda line: (-line["rung"], line["value"]))


def cost(run: Path) -> dict[str, float]:
    """Distinct candidates of a run, and the mean seconds of judging one of them."""
    found = summary(run, "")
    seconds = sum(one["count"] * one["mean_seconds"] for one in found["rungs"].values())
    return {"distinct": found["distinct"], "mean_seconds": seconds / found["distinct"]}


def write_page() -> None:
    """Write agreement.md from the result files that are there."""
    page = [
        "# Whether the search ranks like the full evaluation",
        "",
        "Made by `python benchmarks/agreement.py --run RUN`: the best 20 candidates of a search on"
        " SmolLM2-135M ([search.md](search.md)), in the order of the search, pruned in full and"
        f" measured on {FRESH} windows of the search text that it has not seen. τ: Kendall's, of"
        " the search's order with the loss on those windows. × cheaper: seconds of the full"
        " evaluation over the mean seconds of a distinct candidate in the search.",
        "",
        "| run | candidates | on all windows | τ | τ of those on all windows | × cheaper |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted((HERE / "results").glob("agreement-*.json")):
        found = json.loads(file.read_text())
        rows = found["rows"]
        whole = [row for row in rows if RUNGS[row["rung"]] == "all"]
        full = statistics.mean(row["seconds"] for row in rows)
        cells = [
            f"[{file.stem.removeprefix('agreement-')}](results/{file.name})",
            str(len(rows)),
            str(len(whole)),
            f"{agreement(rows):.2f}",
            f"{agreement(whole):.2f}",
            f"{full / found['run']['mean_seconds']:.0f}",
        ]
        page.append("| " + " | ".join(cells) + " |")
    (HERE / "agreement.md").write_text("\n".join([*page, ""]))


def agreement(rows: list[dict[str, Any]]) -> float:
    """Kendall's τ of the order of `rows` with their losses on fresh windows."""
    return kendall(range(len(rows)), [row["loss"] for row in rows])


if __name__ == "__main__":
    main()
