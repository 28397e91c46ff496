"""Compares swaps under least squares with coarse products in bfloat16 and in float32.

    python benchmarks/narrow.py --calibration wiki.valid.raw \\
        --models builtin:smollm2-135m qwen2.5-coder-1.5b-instruct-q4_k_m.gguf

Wanda's scores remove half of each row in the matrices of one block; `refine+exact` follows on the
same Gram matrix, with the two types of product in turns. Measures seconds, and the output error
relative to that of the mask alone. For a CPU with native bfloat16. Writes results/narrow.json and
narrow.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from pruner_zero.calibration import calibrate, open_store
from pruner_zero.files import write_atomic
from pruner_zero.models import LanguageModel, Matrix, find_matrices, load_model
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.sparsity import STEPS, Hessian, Layer, Unstructured
from pruner_zero.sparsity.layer_error import row_errors
from pruner_zero.sparsity.steps import least_squares
from pruner_zero.text import consecutive_windows, load_corpus
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "narrow.json"
NOTES = HERE / "results" / "narrow-notes.md"
# The block, and the ends of the names of its matrices.
BLOCK, ENDS = 2, ("o_proj", "gate_proj", "down_proj")
WINDOWS, SEQLEN, ROWS, TURNS = 16, 1024, 384, 3
HALF = Unstructured(0.5, "row")


def main() -> None:
    """Measure the models that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--models", nargs="+", required=True)
    given = parser.parse_args()
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for source in given.models:
        name = Path(source).name
        if name not in report:
            report[name] = measure(load_model(source, dtype="float32"), given.calibration)
            write_atomic(FILE, json.dumps(report, indent=1) + "\n")
    (HERE / "narrow.md").write_text(page(report))


def measure(model: LanguageModel, calibration: str) -> list[dict[str, Any]]:
    """A row for each matrix of block `BLOCK`; removes the later blocks from the model."""
    model.model.model.layers = model.model.model.layers[: BLOCK + 1]
    corpus = load_corpus(calibration, role="calibration")
    windows = consecutive_windows(corpus, model.tokenizer, SEQLEN, WINDOWS)
    matrices = find_matrices(model.model)
    rows = []
    with TemporaryDirectory() as cache:
        store = open_store(model, windows, folder=cache)
        calibrate(model, windows, {"gram"}, store)
        reader = DenseStatistics(store, damping=0.01)
        for matrix in matrices:
            if matrix.block == BLOCK and matrix.name.endswith(ENDS):
                rows.append(of_matrix(matrix, reader.read(matrix, {"gram"}).hessian))
    return rows


@torch.no_grad()
def of_matrix(matrix: Matrix, hessian: Hessian | None) -> dict[str, Any]:
    """Seconds and error of the first `ROWS` rows with each type of product."""
    assert hessian is not None
    gram = hessian.gram
    weight = matrix.weight.detach().float()[:ROWS]
    mask = HALF.choose({"": weight.abs() * gram.diagonal().sqrt()})[""]
    layer = Layer(weight, hessian.prepare(), HALF, mask)
    plain = row_errors(weight * ~mask, gram).sum()
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    errors = {}
    for _ in range(TURNS):
        for name, times in seconds.items():
            wide = 0 if name == "bfloat16" else weight.shape[1] + 1
            with mock.patch.object(least_squares, "_WIDE", wide):
                began = time.perf_counter()
                pruned = STEPS["refine+exact"].run(layer)
            times.append(time.perf_counter() - began)
            errors[name] = float(row_errors(weight - pruned.weight, gram).sum() / plain)
    shown = {name: [round(value, 3) for value in times] for name, times in seconds.items()}
    row = {"matrix": matrix.name, "shape": list(weight.shape), "seconds": shown, "errors": errors}
    print(row, flush=True)
    return row


def page(report: dict[str, Any]) -> str:
    """A row for each matrix of each model."""
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
    for model, rows in report.items():
        for row in rows:
            wide, narrow = (row["seconds"][name] for name in ("float32", "bfloat16"))
            ratio = statistics.median(a / b for a, b in zip(narrow, wide, strict=True))
            cells = [model, row["matrix"].rsplit(".", 1)[-1], str(row["shape"][1])]
            cells += [f"{statistics.median(wide):.2f}", f"{statistics.median(narrow):.2f}"]
            cells += [f"{ratio:.2f}", *(f"{row['errors'][n]:.4f}" for n in row["seconds"])]
            table.append(cells)
    header += ["error, float32", "error, bfloat16"]
    return "\n".join([*lines, markdown(header, table), NOTES.read_text()])


if __name__ == "__main__":
    main()
