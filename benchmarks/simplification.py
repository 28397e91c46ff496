"""Distinct masks per 100 candidates: without simplification, with the paper's, with ours.

    python benchmarks/simplification.py --calibration wiki.valid.raw

Draws random candidates in the published and in our space, leaves out those that a level of
simplification knows already, and counts the distinct masks of the first 100 that remain; the
mean over ten seeds. Writes benchmarks/results/simplification.json and simplification.md.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruner_zero.cli.progress import LineProgress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.generate import random_expression
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.files import write_atomic
from pruner_zero.metric import Expression
from pruner_zero.metric.canonical import canonical, masks, simplify_opposing
from pruner_zero.models import load_model
from pruner_zero.provenance import provenance
from pruner_zero.text import load_mixture

HERE = Path(__file__).parent
SPACES = {"published": PUBLISHED_SPACE, "ours": SearchSpace(scopes=("row",))}
LEVELS: dict[str, Callable[[Expression], str | None] | None] = {
    "none": None,
    "the paper's": lambda one: str(simplify_opposing(one)),
    "ours": lambda one: str(canonical(one, "row")) if masks(one, "row") else None,
}
CANDIDATES = 100
NOTHING = "rejected"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", default="wiki.valid.raw")
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    settings = SearchSettings(
        model=given.model,
        calibration=given.calibration,
        search_text=given.calibration,
        sparsity=0.5,
        evaluations=1,
        sampled_weights=1,
    )
    progress = LineProgress()
    model = load_model(given.model)
    corpus = load_mixture(given.calibration)
    windows, judged, _ = search_windows(settings, corpus, corpus, model)
    evaluator = build_evaluator(model, settings, windows, judged, progress=progress)
    rows = [
        {"space": space, "simplification": level, "seed": seed}
        | _count(evaluator, SPACES[space], seed, LEVELS[level])
        for space in SPACES
        for level in LEVELS
        for seed in progress.track(range(given.seeds), f"{space}, {level}", given.seeds)
    ]
    file = HERE / "results" / "simplification.json"
    write_atomic(file, json.dumps({"rows": rows, "provenance": provenance()}, indent=2) + "\n")
    write_page(rows)


@torch.no_grad()
def _count(
    evaluator: Evaluator,
    space: SearchSpace,
    seed: int,
    simplify: Callable[[Expression], str | None] | None,
) -> dict[str, int]:
    """How many of the first 100 that remain have masks of their own, and how many were left out."""
    seen: set[str] = set()
    found: set[str] = set()
    drawn = judged = 0
    for expression in _stream(space, seed):
        drawn += 1
        if simplify is not None:
            name = simplify(expression)
            if name is None or name in seen:
                continue
            seen.add(name)
        judged += 1
        try:
            found.add(evaluator.fingerprint(expression, "row"))
        except PrunerZeroError:
            found.add(NOTHING)
        if judged == CANDIDATES:
            break
    return {"drawn": drawn, "judged": judged, "distinct": len(found - {NOTHING})}


def _stream(space: SearchSpace, seed: int) -> Iterator[Expression]:
    generator = np.random.default_rng(seed)
    while True:
        yield random_expression(generator, space)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write simplification.md."""
    lines = [
        "# What simplification saves",
        "",
        "Made by `python benchmarks/simplification.py --calibration wiki.valid.raw` on"
        " SmolLM2-135M, row groups, 50 %: random candidates, those left out that the level has"
        f" seen before, until {CANDIDATES} remain to be evaluated. Distinct: how many different"
        " masks those have on the probe rows (what no level can know before it computes scores,"
        " the fingerprint then catches). Medians over the seeds, extremes in brackets. Measured"
        " with a canonical form of more rules, common factors of sums among them, which were"
        " removed since they save a search no time.",
        "",
        f"| space | simplification | drawn for {CANDIDATES} | distinct masks of {CANDIDATES} |",
        "|---|---|---|---|",
    ]
    for space in SPACES:
        for level in LEVELS:
            own = [row for row in rows if (row["space"], row["simplification"]) == (space, level)]
            cells = [_range([row[name] for row in own]) for name in ("drawn", "distinct")]
            lines.append(f"| {space} | {level} | {cells[0]} | {cells[1]} |")
    lines += ["", "[Result file](results/simplification.json).", ""]
    (HERE / "simplification.md").write_text("\n".join(lines))


def _range(values: list[int]) -> str:
    return f"{np.median(values):g} ({min(values)} to {max(values)})"


if __name__ == "__main__":
    main()
