"""Compares swaps under least squares with coarse products in bfloat16 and in float32.

    python benchmarks/narrow.py --calibration wiki.valid.raw \\
        --models builtin:smollm2-135m qwen2.5-coder-1.5b-instruct-q4_k_m.gguf

Wanda's scores remove half of each row in the matrices of one block; `refine+exact` follows on the
same Gram matrix, with the two types of product in turns. Measures seconds, and the output error
relative to that of the mask alone. For a CPU with native bfloat16. Then `exact` in float32 at
several tolerances: iterations, and the error beside that at the smallest. Writes
results/narrow.json, results/tolerance.json and narrow.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from pruner_zero.calibration import calibrate, open_store
from pruner_zero.files import write_json
from pruner_zero.models import LanguageModel, find_matrices, load_model
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.sparsity import STEPS, Layer, Unstructured
from pruner_zero.sparsity.layer_error import row_errors
from pruner_zero.sparsity.steps import conjugate_gradients, least_squares
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.windows import consecutive_windows
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "narrow.json"
TOLERANCES_FILE = HERE / "results" / "tolerance.json"
NOTES = HERE / "results" / "narrow-notes.md"
# The block, and the ends of the names of its matrices.
BLOCK, ENDS = 2, ("o_proj", "gate_proj", "down_proj")
WINDOWS, SEQLEN, ROWS, TURNS = 16, 1024, 384, 3
HALF = Unstructured(0.5, "row")
TOLERANCES = (0.001, 0.003, 0.01, 0.03)
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure the models that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--models", nargs="+", required=True)
    given = parser.parse_args()
    reports = {}
    for file, of_matrix in ((FILE, of_types), (TOLERANCES_FILE, of_tolerances)):
        report: dict[str, Rows] = json.loads(file.read_text()) if file.exists() else {}
        for source in given.models:
            name = Path(source).name
            if name not in report:
                model = load_model(source, dtype="float32")
                report[name] = measure(model, given.calibration, of_matrix)
                write_json(file, report)
        reports[file] = report
    (HERE / "narrow.md").write_text(page(reports[FILE], reports[TOLERANCES_FILE]))


def measure(
    model: LanguageModel, calibration: str, of_matrix: Callable[[Layer], dict[str, Any]]
) -> Rows:
    """A row for each matrix of block `BLOCK`; removes the later blocks from the model."""
    model.model.model.layers = model.model.model.layers[: BLOCK + 1]
    corpus = load_corpus(calibration, role="calibration")
    windows = consecutive_windows(corpus, model.tokenizer, SEQLEN, WINDOWS)
    rows = []
    with TemporaryDirectory() as cache:
        store = open_store(model, windows, folder=cache)
        calibrate(model, windows, {"gram"}, store)
        reader = DenseStatistics(store, damping=0.01)
        for matrix in find_matrices(model.model):
            if matrix.block == BLOCK and matrix.name.endswith(ENDS):
                hessian = reader.read(matrix, {"gram"}).hessian
                assert hessian is not None
                weight = matrix.weight.detach().float()[:ROWS]
                mask = HALF.choose({"": weight.abs() * hessian.gram.diagonal().sqrt()})[""]
                row = of_matrix(Layer(weight, hessian.prepare(), HALF, mask))
                rows.append({"matrix": matrix.name, "shape": list(weight.shape), **row})
                print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def of_types(layer: Layer) -> dict[str, Any]:
    """Seconds and error of swaps under least squares with each type of product."""
    weight, gram = layer.dense, layer.required_hessian.gram
    plain = row_errors(weight * ~layer.required_mask, gram).sum()
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    errors = {}
    for _ in range(TURNS):
        for kind, times in seconds.items():
            wide = 0 if kind == "bfloat16" else weight.shape[1] + 1
            with mock.patch.object(conjugate_gradients, "_WIDE", wide):
                began = time.perf_counter()
                pruned = STEPS["refine+exact"].run(layer)
            times.append(time.perf_counter() - began)
            errors[kind] = float(row_errors(weight - pruned.weight, gram).sum() / plain)
    shown = {kind: [round(value, 3) for value in times] for kind, times in seconds.items()}
    return {"seconds": shown, "errors": errors}


@torch.no_grad()
def of_tolerances(layer: Layer) -> dict[str, Any]:
    """Iterations and error of least squares at each tolerance."""
    weight, gram = layer.dense, layer.required_hessian.gram
    row: dict[str, Any] = {"iterations": {}, "errors": {}}
    for tolerance in TOLERANCES:
        with mock.patch.object(conjugate_gradients, "_WIDE", weight.shape[1] + 1):
            solution = least_squares.solve(layer, tolerance=tolerance)
        row["iterations"][str(tolerance)] = solution.iterations
        row["errors"][str(tolerance)] = float(row_errors(weight - solution.weight, gram).sum())
    return row


def page(types: dict[str, Rows], tolerances: dict[str, Rows]) -> str:
    """Two tables with a row for each matrix of each model."""
    lines = [
        "# Coarse products in bfloat16",
        "",
        "Made by `python benchmarks/narrow.py --calibration wiki.valid.raw --models"
        " builtin:smollm2-135m qwen2.5-coder-1.5b-instruct-q4_k_m.gguf`: half of each row by"
        " Wanda's scores, then swaps"
        f" under least squares, the first {ROWS} rows of matrices of block {BLOCK}, {WINDOWS}"
        f" windows of {SEQLEN} tokens of WikiText-2 validation, one thread."
        f" Seconds: medians of {TURNS} turns in which the two types follow one another; error: that"
        " of the outputs, beside the mask alone. [Result file](results/narrow.json).",
        "",
    ]
    header = ["model", "matrix", "in", "seconds, float32", "seconds, bfloat16", "ratio"]
    table = []
    for model, rows in types.items():
        for row in rows:
            wide, narrow = (row["seconds"][name] for name in ("float32", "bfloat16"))
            ratio = statistics.median(a / b for a, b in zip(narrow, wide, strict=True))
            cells = [model, row["matrix"].rsplit(".", 1)[-1], str(row["shape"][1])]
            cells += [f"{statistics.median(wide):.2f}", f"{statistics.median(narrow):.2f}"]
            cells += [f"{ratio:.2f}", *(f"{row['errors'][n]:.4f}" for n in row["seconds"])]
            table.append(cells)
    header += ["error, float32", "error, bfloat16"]
    lines += [
        markdown(header, table),
        "## Tolerance of the last solution",
        "",
        "Least squares under the same masks in float32: the iterations of conjugate gradients until"
        " the residual of every row is at most the tolerance, and how far the error of the outputs"
        f" is above that at {TOLERANCES[0]}, in per cent. [Result file](results/tolerance.json).",
        "",
    ]
    table = [
        [model, row["matrix"].rsplit(".", 1)[-1], str(row["shape"][1]), *of_row(row)]
        for model, rows in tolerances.items()
        for row in rows
    ]
    header = ["model", "matrix", "in", *(f"at {tolerance}" for tolerance in TOLERANCES)]
    return "\n".join([*lines, markdown(header, table), NOTES.read_text()])


def of_row(row: dict[str, Any]) -> list[str]:
    """Iterations, and what the error is above the first, at each tolerance."""
    least, *errors = row["errors"].values()
    first, *iterations = row["iterations"].values()
    above = [f"+{100 * (error / least - 1):.2f} %" for error in errors]
    return [str(first), *(f"{n}, {more}" for n, more in zip(iterations, above, strict=True))]


if __name__ == "__main__":
    main()
