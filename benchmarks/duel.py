"""The search against random search, seed by seed, and on another model beside fixed metrics.

    python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw \
        --arms default random --seeds 0 1 2 3 4 --minutes 6

All runs share the model, the statistics, the search windows and the rungs, and have the same
minutes of the processor, one thread, statistics not counted. What each run chose is measured on
windows of another text, which no search has read. A run is a file under
benchmarks/results/duel; runs that are there are kept. The page is duel.md. --model searches another
model, and --beside measures fixed metrics on the same windows:

    python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw \
        --model gemma-3-270m-q4_k_m.gguf --arms default --seeds 0 --minutes 30 --windows-eval 24 \
        --beside 'W * X@row' 'W * (O * X)^0.75@global' 'W * G^0.75@global'
"""

import argparse
import json
import math
import re
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pruner_zero.cli.progress import LineProgress
from pruner_zero.cli.search import Display
from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.archive import Archive
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.run import run_batches
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.evolution.study import Study
from pruner_zero.execution import Workers, make_executor
from pruner_zero.files import write_atomic
from pruner_zero.metric import parse
from pruner_zero.models import load_model
from pruner_zero.text import consecutive_windows, load_corpus, load_mixture

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "duel"
USUAL = "builtin:smollm2-135m"
# What differs from the search as it is: settings of `search`, such as a space without a terminal.
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "random": {"algorithm": "random"},
    "larger batches": {"algorithm_settings": {"initial": 96, "batch": 48}},
}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=USUAL)
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--text", help="WikiText-2 test, raw")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--pattern")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=["default", "random"])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(10)))
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--windows-eval", type=int, default=48)
    parser.add_argument("--beside", nargs="*", default=[], metavar="METRIC@SCOPE")
    parser.add_argument("--runs", type=Path, default=Path("runs/duel"))
    given = parser.parse_args()
    if given.calibration and given.text:
        run(given)
    write_page()


def run(given: argparse.Namespace) -> None:
    """Search with every arm and seed that has no result yet."""
    zeros = {"pattern": given.pattern} if given.pattern else {"sparsity": given.sparsity or 0.5}
    name = str(next(iter(zeros.values()))).replace(":", "-")
    if given.model != USUAL:
        name = f"{Path(given.model).stem}-{name}"
    base = {
        "model": given.model,
        "calibration": given.calibration,
        "minutes": given.minutes,
        "executor": "serial",
        **zeros,
    }
    settings = {arm: SearchSettings(**base, **ARMS[arm]) for arm in given.arms}
    language_model = load_model(given.model)
    text = load_mixture(given.calibration, role="calibration")
    widest = SearchSettings(**base)
    windows, judged, fresh = search_windows(widest, text, text, language_model)
    progress = LineProgress()
    evaluator = build_evaluator(
        language_model, widest, windows, judged, fresh=fresh, progress=progress
    )
    corpus = load_corpus(given.text)
    test = consecutive_windows(corpus, language_model.tokenizer, widest.seqlen, given.windows_eval)
    for metric in given.beside:
        file = RESULTS / f"{name}-{re.sub('[^A-Za-z0-9.^@]+', '-', metric)}.json"
        if not file.exists():
            expression, _, scope = metric.partition("@")
            losses = evaluator.masked.losses(parse(expression), scope, test.tokens)
            row = {"model": given.model, "zeros": zeros, "metric": metric, "losses": losses}
            write_atomic(file, json.dumps(row, indent=2) + "\n")
    executor = make_executor("serial", evaluator, Workers(None, 1, 600.0, None, {}))
    for seed in given.seeds:
        for arm in given.arms:
            file = RESULTS / f"{name}-{arm.replace(' ', '-')}-{seed}.json"
            if file.exists():
                continue
            chosen, folder = settings[arm], given.runs / f"{name}-{arm}-{seed}"
            algorithm = make_algorithm(
                chosen.algorithm, chosen.search_space, seed, chosen.algorithm_settings
            )
            folder.mkdir(parents=True, exist_ok=True)
            archive = Archive(folder, chosen.identity())
            # Minutes of the processor, so that other work on the machine takes none of a run's.
            clock = SimpleNamespace(monotonic=time.process_time)
            with (
                Display() as display,
                patch("pruner_zero.evolution.run.time", clock),
                patch("pruner_zero.evolution.evaluator.time", clock),
            ):
                run_batches(algorithm, archive, executor, chosen, folder, display)
            study = Study.open(folder)
            best = study.hall_of_fame.best
            assert best is not None
            candidate = best.candidate
            losses = evaluator.masked.losses(candidate.expression, candidate.scope, test.tokens)
            result = {
                "model": given.model,
                "arm": arm,
                "seed": seed,
                "zeros": zeros,
                "minutes": given.minutes,
                "arm_settings": ARMS[arm],
                "winner": f"{candidate.expression} @{candidate.scope}",
                "losses": losses,
                "final": study.final_race.to_rows(),
                "candidates": len(study.records),
                "by_rung": {rung: len(seconds) for rung, seconds in study.seconds.items()},
                "seconds_by_rung": {rung: sum(s) for rung, s in study.seconds.items()},
                "curve": curve(study),
                "windows": {"search": judged.describe(), "test": test.describe()},
            }
            write_atomic(file, json.dumps(result, indent=2) + "\n")
            write_page()


def curve(study: Study) -> list[tuple[float, float]]:
    """Seconds and the lowest loss on all search windows, after every batch that has one."""
    points, first = [], 0
    best = math.inf
    for candidates, seconds in study.batches:
        for record in study.records[first:candidates]:
            best = min(best, record.evaluation.results.get("all", math.inf))
        first = candidates
        if best < math.inf:
            points.append((seconds, best))
    return points


def write_page() -> None:
    """Write duel.md from the result files that are there."""
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    lines = [
        "# The search beside random search, seed by seed",
        "",
        "Made by `python benchmarks/duel.py --calibration wiki.valid.raw --text wiki.test.raw` with"
        " the zeros, arms, seeds and minutes in the tables: minutes of the processor, one thread,"
        " without the statistics. All runs of a table share the statistics (24"
        " windows of the first half of WikiText-2 validation), the search windows (of its second"
        " half), the rungs and the final race. The loss is that of what a run chose, on windows"
        " of WikiText-2 test, which no search has read.",
        "",
    ]
    tables: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        model = Path(result.get("model", USUAL)).stem.removeprefix("builtin:")
        title = " ".join(f"{key} {value}" for key, value in result["zeros"].items())
        tables.setdefault(f"{model}, {title}", []).append(result)
    for title, rows in tables.items():
        arms = [row for row in rows if "arm" in row]
        fixed = [row for row in rows if "metric" in row]
        lines += [f"## {title}", "", *_against(arms), "", *_runs(arms, fixed), ""]
    notes = HERE / "results" / "duel-notes.md"
    lines += [notes.read_text()] if notes.exists() else []
    (HERE / "duel.md").write_text("\n".join(lines).rstrip() + "\n")


def _against(rows: list[dict[str, Any]]) -> list[str]:
    """Every arm against the default, over the seeds that both have."""
    by_arm: dict[str, dict[int, float]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = statistics.mean(row["losses"])
    first = by_arm.get("default", {})
    lines = [
        "| against the default | seeds | default is better in | median difference, nats"
        " | median perplexity of the arm | of the default |",
        "|---|---|---|---|---|---|",
    ]
    for arm, losses in by_arm.items():
        seeds = sorted(losses.keys() & first.keys())
        if arm == "default" or not seeds:
            continue
        ahead = [losses[seed] - first[seed] for seed in seeds]
        cells = [
            arm,
            str(len(seeds)),
            str(sum(difference > 0 for difference in ahead)),
            f"{statistics.median(ahead):+.3f}",
            f"{math.exp(statistics.median(losses[seed] for seed in seeds)):.2f}",
            f"{math.exp(statistics.median(first[seed] for seed in seeds)):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _runs(rows: list[dict[str, Any]], fixed: list[dict[str, Any]]) -> list[str]:
    windows = len((rows + fixed)[0]["losses"])
    lines = [
        "| seed | arm | minutes | candidates | few | all | perplexity on test, 12 windows"
        f" | {windows} windows | chosen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["seed"], row["arm"])):
        cells = [
            str(row["seed"]),
            row["arm"],
            f"{row['minutes']:g}",
            str(row["candidates"]),
            *(str(row["by_rung"].get(rung, 0)) for rung in ("few", "all")),
            *_perplexities(row),
            f"`{row['winner']}`",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for row in fixed:
        cells = ["", "fixed", "", "", "", "", *_perplexities(row), f"`{row['metric']}`"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _perplexities(row: dict[str, Any]) -> list[str]:
    parts = (row["losses"][:12], row["losses"])
    return [f"{math.exp(statistics.mean(losses)):.2f}" for losses in parts]


if __name__ == "__main__":
    main()
