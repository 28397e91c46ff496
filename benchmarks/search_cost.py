"""The cost of a search: by rung, by windows and size of the model, and without shared work.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py

Searches on the built-in model and text, and masks random models of its width (`shapes.py`) at
several depths. One thread does all work, and times are processor times, which other work on the
machine changes little. Each kind of work that candidates share is switched off, in turn with runs
that share all of it, and every run must leave the same archive. Sections in
benchmarks/results/search-cost.json are kept, `--again SECTION` measures one anew; search_cost.md
is written from that file.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.evaluator import RUNGS, Evaluator, Rung, Task
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from pruner_zero.provenance import provenance
from pruner_zero.sparsity import Scope
from pruner_zero.text.mixture import load_mixture
from search_cost_page import write_page
from shapes import Shape, make_checkpoint
from tables import machine
from unshared import SHARED, Clocked, Searched, fields_of, search

HERE = Path(__file__).parent
RESULT = HERE / "results" / "search-cost.json"
TEXT = "builtin:pydoc"
# The built-in model's width; the depths are one, two, four and eight times the least.
WIDTH = {"hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3, "vocabulary": 49152}
DEPTHS = (8, 16, 32, 64)
WINDOWS = (1, 2, 4, 8)
METRICS: tuple[tuple[str, Scope], ...] = (
    ("W * X", "row"),
    ("abs(W * W) * mms(G)", "row"),
    ("W * G^0.5 * X^0.25", "global"),
)
TOP = 15
SECTIONS = ("rungs", "windows", "sizes", "sharing")


def prepare(model: str, **given: Any) -> tuple[SearchSettings, Evaluator]:
    """The settings of a search on the built-in text without a final race, and its evaluator."""
    settings = SearchSettings(
        model=model,
        calibration=TEXT,
        search_text=TEXT,
        sparsity=0.5,
        final_windows=0,
        **given,
    )
    language_model = load_model(model)
    texts = load_mixture(TEXT, role="calibration"), load_mixture(TEXT, role="search")
    windows, judged, _ = search_windows(settings, *texts, language_model)
    evaluator = build_evaluator(language_model, settings, windows, judged)
    return settings, Clocked(**fields_of(evaluator))


def measure_rungs(folder: Path) -> dict[str, Any]:
    """The time that each rung takes of a short search with default windows."""
    settings, evaluator = prepare(
        "builtin:smollm2-135m",
        windows=4,
        evaluations=60,
        algorithm_settings={"initial": 48, "batch": 24},
    )
    searched = search(settings, evaluator, folder)
    seconds: dict[str, list[float]] = {"rejection": searched.rejection}
    for line in searched.journal:
        if line["kind"] == "outcome":
            seconds.setdefault(line["rung"], []).append(line["seconds"])
    rungs = {
        rung: {
            "count": len(times),
            "median_seconds": statistics.median(times),
            "share": sum(times) / searched.seconds,
        }
        for rung, times in seconds.items()
    }
    windows = {"few": settings.few_windows, "all": settings.search_windows}
    return {
        "candidates": searched.candidates,
        "seconds": searched.seconds,
        "windows": windows,
        "seqlen": settings.seqlen,
        "rungs": rungs,
    }


def measure_windows(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a candidate on the most expensive rung for each number of windows, in turn."""
    del folder
    settings, evaluator = prepare(
        "builtin:smollm2-135m", windows=4, evaluations=1, search_windows=max(WINDOWS)
    )
    tasks: dict[str, tuple[Evaluator, Sequence[Rung]]] = {
        str(count): (replace(evaluator, windows=evaluator.windows[:count]), ("all",))
        for count in WINDOWS
    }
    medians = {count: times["all"] for count, times in in_turn(tasks, repeats).items()}
    return {"seqlen": settings.seqlen, "repeats": repeats, "seconds": medians}


def measure_sizes(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a candidate on each rung for each number of blocks of the same width."""
    given = {"windows": 2, "seqlen": 256, "search_windows": 4, "few_windows": 1, "evaluations": 1}
    rows = []
    for blocks in DEPTHS:
        model = make_checkpoint(Shape(**WIDTH, blocks=blocks), folder / f"blocks-{blocks}")
        _, evaluator = prepare(str(model), **given)
        weights = sum(matrix.weight.numel() for matrix in evaluator.masked.matrices)
        medians = in_turn({"": (evaluator, RUNGS)}, repeats)[""]
        rows.append({"blocks": blocks, "weights": weights, "seconds": medians})
        print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(model)
    return {**given, "repeats": repeats, "rows": rows}


def in_turn(
    tasks: Mapping[str, tuple[Evaluator, Sequence[Rung]]], repeats: int
) -> dict[str, dict[str, float]]:
    """Median seconds of a candidate on each rung; the evaluators take turns."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in tasks}
    for _ in range(repeats):
        for expression, scope in METRICS:
            for name, (evaluator, rungs) in tasks.items():
                for rung in rungs:
                    outcome = evaluator.run(Task(0, rung, expression, scope))
                    assert outcome.reason is None, outcome.reason
                    seconds[name].setdefault(rung, []).append(outcome.seconds)
    return {
        name: {rung: statistics.median(times) for rung, times in by_rung.items()}
        for name, by_rung in seconds.items()
    }


def short_search() -> tuple[SearchSettings, Evaluator]:
    """A search short enough to repeat: a sixth of the model and sample, few and short windows."""
    return prepare(
        "builtin:smollm2-135m",
        windows=4,
        seqlen=128,
        search_windows=4,
        few_windows=1,
        evaluations=60,
        include=("*.layers.[0-4].*",),
        sampled_weights=1_300_000,
        algorithm_settings={"initial": 14, "batch": 8},
    )


def measure_sharing(
    folder: Path, repeats: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Candidates a minute with all shared work, and without each kind of it, in turn.

    keep: called with the result so far after each turn.
    """
    settings, evaluator = short_search()
    runs: dict[str, tuple[str, ...]] = {"nothing": (), **{name: (name,) for name in SHARED}}
    runs["all of it"] = tuple(SHARED)
    turns: list[dict[str, Searched]] = []
    while len(turns) < repeats:
        turns.append({})
        for name, off in runs.items():
            searched = turns[-1][name] = search(settings, evaluator, folder, off)
            assert searched.archive == turns[0]["nothing"].archive, f"{name}: another archive"
            print(name, round(searched.seconds, 1), dict(searched.again), flush=True)
        result = {
            "settings": settings.model_dump(mode="json", exclude_unset=True),
            "candidates": turns[0]["nothing"].candidates,
            "turns": len(turns),
            "archives_equal": True,
            "rows": [_compared(name, turns) for name in runs],
        }
        keep(result)
    return result


def _compared(name: str, turns: Sequence[Mapping[str, Searched]]) -> dict[str, Any]:
    runs = [turn[name] for turn in turns]
    return {
        "off": name,
        "seconds": [run.seconds for run in runs],
        "per_minute": statistics.median(60 * run.candidates / run.seconds for run in runs),
        "ratio": statistics.median(turn["nothing"].seconds / turn[name].seconds for turn in turns),
        "judged_again": dict(runs[0].again),
    }


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder that is deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure the sections that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/search-cost"))
    parser.add_argument("--again", nargs="*", choices=SECTIONS, default=[], help="to measure anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}

    def keep(name: str, section: dict[str, Any]) -> None:
        report[name] = {**section, "machine": machine(), "provenance": provenance()}
        write_json(RESULT, report)
        write_page(report)

    sections: dict[str, Callable[[Path], dict[str, Any]]] = {
        "rungs": measure_rungs,
        "windows": lambda folder: measure_windows(folder, given.repeats),
        "sizes": lambda folder: measure_sizes(folder, given.repeats),
        "sharing": lambda folder: measure_sharing(folder, given.repeats, partial(keep, "sharing")),
    }
    for name, measure in sections.items():
        if name not in report or name in given.again:
            with scratch(given.folder) as folder:
                keep(name, measure(folder))
    write_page(report)


if __name__ == "__main__":
    main()
