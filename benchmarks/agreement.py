"""Whether a search ranks its best candidates as the full evaluation does.

    python benchmarks/agreement.py --run runs/50-any-default-0

The search ranks the candidates of a finished run by their loss on all search windows: the measured
loss, or the loss on a few windows plus the mean difference of the two. Each of the best 20 prunes
the model in full, and its loss is measured on all search windows and on 16 windows of the search
text that the search has not used. Writes benchmarks/results/agreement-*.json as it goes, and
agreement.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from pruner_zero.cli.progress import LineProgress
from pruner_zero.evolution.archive import JOURNAL
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.files import read_lines, write_atomic
from pruner_zero.metric import parse
from pruner_zero.models import load_model
from pruner_zero.text import load_mixture
from search import summary
from tables import markdown

HERE = Path(__file__).parent
BEST, FRESH = 20, 16


def main() -> None:
    """Measure the missing candidates and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a search")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    progress = LineProgress()
    lines = read_lines(given.run / JOURNAL)
    best = ranked(lines)[:BEST]
    order = [line["number"] for line in best]
    file = HERE / "results" / f"agreement-{given.run.name}.json"
    report: dict[str, Any] = {"run": cost(given.run), "rows": []}
    if file.exists():
        report["rows"] = json.loads(file.read_text())["rows"]
    settings = SearchSettings.model_validate(
        json.loads((given.run / "run.json").read_text())["settings"]
    )
    model, text = load_model(settings.model), load_mixture(settings.calibration)
    # A seed draws its windows in a fixed order, so the first windows are those of the search.
    more = settings.model_copy(update={"search_windows": settings.search_windows + FRESH})
    windows, judged, _ = search_windows(
        more, text, load_mixture(settings.search_text or settings.calibration), model
    )
    evaluator = build_evaluator(model, settings, windows, judged, progress=progress)
    searched = judged.tokens[: settings.search_windows]
    fresh = judged.tokens[settings.search_windows :]
    write_atomic(file, json.dumps(report, indent=2) + "\n")
    measured = {row["number"]: row for row in report["rows"]}
    for line in progress.track(best, "candidates", len(best)):
        row = {name: line[name] for name in ("number", "expression", "scope", "rung", "known")}
        row |= {"seen": line["results"].get("all")} | measured.get(line["number"], {})
        metric, start = parse(line["expression"]), time.monotonic()
        if "fresh" not in row:
            row["fresh"] = statistics.mean(evaluator.masked.losses(metric, line["scope"], fresh))
            row["seconds"] = round(time.monotonic() - start, 1)
        if row["seen"] is None:
            row["seen"] = statistics.mean(evaluator.masked.losses(metric, line["scope"], searched))
        measured[line["number"]] = row
        report["rows"] = [measured[number] for number in order if number in measured]
        write_atomic(file, json.dumps(report, indent=2) + "\n")
    write_page()


def ranked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct candidates of a journal that ran on text, best first, each with `known`.

    known: the loss on all search windows; where it was not measured, the loss on a few windows plus
    the mean difference of the two losses over the candidates that have both.
    """
    judged = [
        line
        for line in lines
        if line["kind"] == "candidate" and line["same_as"] is None and line["rung"] >= 2
    ]
    both = [line["results"] for line in judged if "all" in line["results"]]
    difference = statistics.mean(results["all"] - results["few"] for results in both)
    for line in judged:
        line["known"] = line["results"].get("all", line["results"]["few"] + difference)
    return sorted(judged, key=lambda line: float(line["known"]))


def cost(run: Path) -> dict[str, float]:
    """Distinct candidates of a run, and the mean seconds of judging one of them."""
    totals = summary(run, "")
    seconds = sum(rung["count"] * rung["mean_seconds"] for rung in totals["rungs"].values())
    return {"distinct": totals["distinct"], "mean_seconds": seconds / totals["distinct"]}


def write_page() -> None:
    """Write agreement.md from the result files that are there."""
    page = [
        "# Whether the search ranks like the full evaluation",
        "",
        "Made by `python benchmarks/agreement.py --run RUN`: the best 20 candidates of a search on"
        " SmolLM2-135M ([search.md](search.md)), ordered by what the search knows of their loss on"
        " all of its windows: measured, or the loss on a few windows plus the mean difference of"
        " those that have both. Each is pruned in full and measured on all of those windows and on"
        f" {FRESH} windows of the search text that the search has not seen. τ: Kendall's, of the"
        " search's order with the loss. Apart: how far the second and the last of the 20 are from"
        " the first on unseen windows, in nats. × cheaper: seconds of the full evaluation over the"
        " mean seconds of a distinct candidate in the search.",
        "",
    ]
    header = ["run", "candidates", "on all windows", "τ, windows of the search"]
    header += ["τ, unseen windows", "apart", "× cheaper"]
    table = []
    for file in sorted((HERE / "results").glob("agreement-*.json")):
        report = json.loads(file.read_text())
        rows = report["rows"]
        full = statistics.mean(row["seconds"] for row in rows)
        losses = sorted(row["fresh"] for row in rows)
        cells = [
            f"[{file.stem.removeprefix('agreement-')}](results/{file.name})",
            str(len(rows)),
            str(sum(RUNGS[row["rung"]] == "all" for row in rows)),
            f"{agreement(rows, 'seen'):.2f}",
            f"{agreement(rows, 'fresh'):.2f}",
            f"{losses[1] - losses[0]:.3f}, {losses[-1] - losses[0]:.3f}",
            f"{full / report['run']['mean_seconds']:.0f}",
        ]
        table.append(cells)
    (HERE / "agreement.md").write_text("\n".join([*page, markdown(header, table)]))


def agreement(rows: list[dict[str, Any]], windows: str) -> float:
    """Kendall's τ of the order of `rows` with their losses on `windows`, "seen" or "fresh"."""
    return float(kendalltau(range(len(rows)), [row[windows] for row in rows]).statistic)


if __name__ == "__main__":
    main()
