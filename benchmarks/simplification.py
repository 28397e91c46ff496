"""Distinct masks per 100 candidates: without simplification, with the paper's, with ours.

    python benchmarks/simplification.py --calibration wiki.valid.raw

Draws random candidates from the published and from our space, leaves out those whose simplified
form occurred before, and counts the distinct masks of the first 100 that remain; medians over ten
seeds. Writes benchmarks/results/simplification.json and simplification.md.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from pruner_zero.files import write_json
from pruner_zero.metric import Expression, Shape
from pruner_zero.metric.canonical import canonical, simplify_opposing
from pruner_zero.models import load_model
from pruner_zero.provenance import provenance
from pruner_zero.text.mixture import load_mixture
from tables import markdown

HERE = Path(__file__).parent
SPACES = {"published": PUBLISHED_SPACE, "ours": SearchSpace(scopes=("row",))}
LEVELS: dict[str, Callable[[Expression], str | None] | None] = {
    "none": None,
    "the paper's": lambda metric: str(simplify_opposing(metric)),
    "ours": lambda metric: _canonical(metric),
}
CANDIDATES = 100


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
    write_json(file, {"rows": rows, "provenance": provenance()})
    write_page(rows)


@torch.no_grad()
def _count(
    evaluator: Evaluator,
    space: SearchSpace,
    seed: int,
    simplify: Callable[[Expression], str | None] | None,
) -> dict[str, int]:
    """The numbers of drawn candidates, of judged ones (100), and of their distinct masks."""
    forms: set[str] = set()
    fingerprints: set[str] = set()
    drawn = judged = 0
    for expression in _stream(space, seed):
        drawn += 1
        if simplify is not None:
            form = simplify(expression)
            if form is None or form in forms:
                continue
            forms.add(form)
        judged += 1
        with suppress(PrunerZeroError):
            fingerprints.add(evaluator.fingerprint(expression, "row"))
        if judged == CANDIDATES:
            break
    return {"drawn": drawn, "judged": judged, "distinct": len(fingerprints)}


def _canonical(metric: Expression) -> str | None:
    """The canonical form; None where it has no value per weight, and so gives no mask."""
    form = canonical(metric, "row")
    return str(form) if form.shape is Shape.MATRIX else None


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
    ]
    table = []
    for space in SPACES:
        for level in LEVELS:
            seeds = [row for row in rows if (row["space"], row["simplification"]) == (space, level)]
            cells = [_range([row[name] for row in seeds]) for name in ("drawn", "distinct")]
            table.append([space, level, *cells])
    columns = (f"drawn for {CANDIDATES}", f"distinct masks of {CANDIDATES}")
    lines.append(markdown(("space", "simplification", *columns), table))
    lines += ["[Result file](results/simplification.json).", ""]
    (HERE / "simplification.md").write_text("\n".join(lines))


def _range(values: list[int]) -> str:
    return f"{np.median(values):g} ({min(values)} to {max(values)})"


if __name__ == "__main__":
    main()
