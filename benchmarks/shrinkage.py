"""Least squares and swaps on windows that they have not seen, with and without shrinkage.

    python benchmarks/shrinkage.py --text wiki.valid.raw \\
        --models builtin:smollm2-135m

Wanda's scores remove half of each row in matrices of one block; `exact` and `refine+exact` follow
on the Gram matrix of some windows. The error of the outputs is measured on other windows of the
same text, relative to that of the mask alone, for shrinkages that are multiples of the inputs over
the tokens of the fit. Writes results/shrinkage.json and shrinkage.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration import calibrate, open_store
from pruner_zero.files import write_json
from pruner_zero.models import LanguageModel, Matrix, find_matrices, load_model
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.sparsity import STEPS, Hessian, Layer, Unstructured, keep_mask
from pruner_zero.sparsity.layer_error import row_errors
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.windows import Windows, consecutive_windows
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "shrinkage.json"
NOTES = HERE / "results" / "shrinkage-notes.md"
# The block, and the ends of the names of its matrices.
BLOCK, ENDS = 2, ("o_proj", "gate_proj", "down_proj")
ROWS, SEQLEN, FITTED, HELD_OUT = 48, 1024, (2, 8, 24), 8
# Multiples of the inputs over the tokens.
FACTORS = (0.0, 0.5, 1.0, 2.0, 4.0)
HALF = Unstructured(0.5, "row")
METHODS = {"least squares": "exact", "swaps and least squares": "refine+exact"}
Row = dict[str, Any]


def main() -> None:
    """Measure the models that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", help="WikiText-2 validation, raw")
    parser.add_argument("--models", nargs="*", default=[])
    given = parser.parse_args()
    report: dict[str, list[Row]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for source in given.models:
        name = Path(source).name
        if name not in report:
            report[name] = measure(load_model(source, dtype="float32"), given.text)
            write_json(FILE, report)
    (HERE / "shrinkage.md").write_text(page(report))


@torch.no_grad()
def measure(model: LanguageModel, text: str) -> list[Row]:
    """A row for each matrix of block `BLOCK` and number of windows; removes the later blocks."""
    model.model.model.layers = model.model.model.layers[: BLOCK + 1]
    corpus = load_corpus(text, role="calibration")
    windows = consecutive_windows(corpus, model.tokenizer, SEQLEN, max(FITTED) + HELD_OUT)
    matrices = [
        matrix
        for matrix in find_matrices(model.model)
        if matrix.block == BLOCK and matrix.name.endswith(ENDS)
    ]
    held_out = grams(model, replace(windows, tokens=windows.tokens[max(FITTED) :]), matrices)
    rows = []
    for count in FITTED:
        fitted = grams(model, replace(windows, tokens=windows.tokens[:count]), matrices)
        for matrix in matrices:
            weight = matrix.weight.detach().float()
            weight = weight[torch.linspace(0, len(weight) - 1, ROWS).long()]
            gram = fitted.pop(matrix.name)
            errors = errors_of(weight, gram, held_out[matrix.name], count * SEQLEN)
            shown = {"matrix": matrix.name, "inputs": len(gram), "tokens": count * SEQLEN}
            rows.append({**shown, **errors})
            print(rows[-1], flush=True)
    return rows


def grams(model: LanguageModel, windows: Windows, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
    """The Gram matrix of each matrix's input on these windows."""
    with TemporaryDirectory() as cache:
        store = open_store(model, windows, folder=cache)
        calibrate(model, windows, {"gram"}, store)
        reader = DenseStatistics(store, damping=0.01)
        hessians = {matrix.name: reader.read(matrix, {"gram"}).hessian for matrix in matrices}
    return {name: hessian.gram for name, hessian in hessians.items() if hessian is not None}


def errors_of(
    weight: Tensor, gram: Tensor, held_out: Tensor, tokens: int
) -> dict[str, dict[str, float]]:
    """By method and factor, the error on held-out windows where that of the mask alone is 1."""
    mask = keep_mask(weight.abs() * gram.diagonal().sqrt(), HALF)
    plain = row_errors(weight * ~mask, held_out).sum()
    errors: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for factor in FACTORS:
        hessian = Hessian(gram, shrinkage=factor * len(gram) / tokens)
        for method, step in METHODS.items():
            solved = STEPS[step].run(Layer(weight, hessian, HALF, mask)).weight
            error = row_errors(weight - solved, held_out).sum() / plain
            errors[method][str(factor)] = round(float(error), 4)
    return errors


def page(report: dict[str, list[Row]]) -> str:
    """A table for each method, with a row for each matrix and number of windows."""
    lines = [
        "# Shrinkage for few tokens",
        "",
        "Made by `python benchmarks/shrinkage.py --text wiki.valid.raw --models"
        f" {' '.join(report)}`: half of each row by Wanda's scores, {ROWS} rows of matrices of"
        f" block {BLOCK}, windows of {SEQLEN} tokens of WikiText-2 validation. The error of the"
        f" outputs on the {HELD_OUT} windows that follow those of the fit, where that of the mask"
        " alone is 1. The columns are multiples of the"
        " inputs over the tokens of the fit. [Result file](results/shrinkage.json).",
        "",
    ]
    header = ["model", "matrix", "inputs", "tokens", "tokens per input"]
    header += [f"{factor:g}" for factor in FACTORS]
    for method in METHODS:
        table = [
            [
                model,
                row["matrix"].rsplit(".", 1)[-1],
                str(row["inputs"]),
                str(row["tokens"]),
                f"{row['tokens'] / row['inputs']:.1f}",
                *(f"{error:.3f}" for error in row[method].values()),
            ]
            for model, rows in report.items()
            for row in rows
        ]
        lines += [f"## {method.capitalize()}", "", markdown(header, table), ""]
    return "\n".join([*lines, NOTES.read_text()])


if __name__ == "__main__":
    main()
