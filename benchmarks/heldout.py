"""Choosing the damping, and a blend of weights, of each matrix by a held-out Gram matrix.

    python benchmarks/heldout.py --text wiki.valid.raw

Rows of every matrix of SmolLM2-135M lose half of their weights by Wanda's scores; least squares on
windows of a text solves for the kept weights. The output error, relative to that of the mask alone,
is measured on these windows, on held-out windows of the same text, and on another kind of text. It
is measured for several dampings, for the damping of each matrix with the least error on the
held-out windows, and for the blend of masked and solved weights with the least error there, which
has a closed form. Writes results/heldout.json and heldout.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration import calibrate, open_store, self_windows
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import LanguageModel, find_matrices, load_model
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.sparsity import Hessian, Layer, Unstructured
from pruner_zero.sparsity.layer_error import row_errors
from pruner_zero.sparsity.steps.least_squares import solve
from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.windows import Windows, consecutive_windows

HERE = Path(__file__).parent
FILE = HERE / "results" / "heldout.json"
NOTES = HERE / "results" / "heldout-notes.md"
MODEL = "builtin:smollm2-135m"
DAMPINGS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
USUAL = 0.01
ROWS, WINDOWS, SEQLEN = 64, 24, 1024
# The text for the fit → the sources that errors are measured on: the windows of the fit, held-out
# windows of the same text, another text.
CASES = {
    "WikiText-2": ("wiki", "wiki, held out", "pydoc"),
    "the model's own text": ("self", "self, held out", "wiki"),
}


def main() -> None:
    """Measure the cases that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", help="WikiText-2 validation, raw")
    given = parser.parse_args()
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if given.text:
        model = load_model(MODEL, dtype="float32")
        for name, sources in CASES.items():
            if name not in report:
                report[name] = measure(model, [windows_of(model, s, given.text) for s in sources])
                write_json(FILE, report)
    (HERE / "heldout.md").write_text(page(report))


def windows_of(model: LanguageModel, source: str, text: str) -> Windows:
    """`WINDOWS` windows of a source; held-out windows come from another part of its text."""
    name, _, part = source.partition(", ")
    if name == "self":
        return self_windows(model, WINDOWS, SEQLEN, 0, first=WINDOWS if part else 0)
    corpus = load_corpus("builtin:pydoc", role="calibration")
    if name == "wiki":
        whole = Path(text).read_text()
        half = len(whole) // 2
        corpus = Corpus(source, whole[half:] if part else whole[:half])
    return consecutive_windows(corpus, model.tokenizer, SEQLEN, WINDOWS)


def measure(model: LanguageModel, texts: list[Windows]) -> dict[str, Any]:
    """The errors relative to those of the mask alone, geometric means over the matrices.

    texts: the windows of the fit, held-out windows, another text.
    """
    matrices = find_matrices(model.model)
    readers = []
    for windows in texts:
        store = open_store(model, windows)
        calibrate(model, windows, {"gram"}, store, progress=LineProgress())
        readers.append(DenseStatistics(store, USUAL))
    logs: dict[str, list[list[float]]] = {}
    for matrix in LineProgress().track(matrices, "matrices", len(matrices)):
        hessians = [reader.read(matrix, {"gram"}).hessian for reader in readers]
        grams = [hessian.gram for hessian in hessians if hessian is not None]
        weight = matrix.weight.detach().float()
        index = torch.linspace(0, len(weight) - 1, min(ROWS, len(weight))).round().long()
        for name, errors in of_matrix(weight[index], grams).items():
            logs.setdefault(name, []).append([float(error.log()) for error in errors])
    means = {name: torch.tensor(rows).mean(0).exp().tolist() for name, rows in logs.items()}
    chosen = torch.tensor([[row[1] for row in logs[str(d)]] for d in DAMPINGS]).argmin(0)
    means["damping chosen"] = [
        torch.tensor([logs[str(DAMPINGS[d])][m][text] for m, d in enumerate(chosen.tolist())])
        .mean()
        .exp()
        .item()
        for text in range(3)
    ]
    counts = torch.bincount(chosen, minlength=len(DAMPINGS)).tolist()
    return {"errors": means, "chosen": dict(zip(map(str, DAMPINGS), counts, strict=True))}


def of_matrix(dense: Tensor, grams: list[Tensor]) -> dict[str, list[Tensor]]:
    """The relative errors of some rows (rows, in) on every Gram matrix, by damping or blend."""
    score = dense.abs() * grams[0].diagonal().sqrt()
    mask = Unstructured(0.5, "row").choose({"matrix": score})["matrix"]
    masked = dense * mask
    base = [row_errors(dense - masked, gram).sum() for gram in grams]
    errors = {}
    for damping in DAMPINGS:
        hessian = Hessian(grams[0], damping=damping)
        solved = solve(Layer(dense, hessian, Unstructured(0.5, "row"), mask)).weight
        if damping == USUAL:
            usual = solved
        errors[str(damping)] = [
            row_errors(dense - solved, gram).sum() / error
            for gram, error in zip(grams, base, strict=True)
        ]
    step = usual - masked
    # The error along the line from masked to solved weights is a parabola; `share` is its minimum.
    slope = (((dense - masked) @ grams[1]) * step).sum()
    share = (slope / row_errors(step, grams[1]).sum()).clamp(0, 1)
    blend = masked + share * step
    errors["blend chosen"] = [
        row_errors(dense - blend, gram).sum() / error
        for gram, error in zip(grams, base, strict=True)
    ]
    return errors


def page(report: dict[str, Any]) -> str:
    """A table for each text of a fit."""
    lines = [
        "# Choosing the damping by held-out windows",
        "",
        "Made by `python benchmarks/heldout.py --text wiki.valid.raw`: SmolLM2-135M, half of each"
        f" row by Wanda's scores, {ROWS} rows of every matrix, {WINDOWS} windows of {SEQLEN} tokens"
        " of each text, all of the dense model's activations. The error of the outputs after least"
        " squares where that of the mask alone is 1, the geometric mean over the matrices.",
        "",
    ]
    for name, case in report.items():
        sources = ["where it was fitted", *CASES[name][1:]]
        lines += [f"## Fitted to {name}", "", f"| | {' | '.join(sources)} |", "|---|---|---|---|"]
        for label, errors in case["errors"].items():
            words = label if " " in label else f"damping {label}"
            lines.append(f"| {words} | {' | '.join(f'{error:.3f}' for error in errors)} |")
        chosen = ", ".join(f"{damping}: {count}" for damping, count in case["chosen"].items())
        lines += ["", f"Matrices for which each damping was chosen: {chosen}.", ""]
    lines += [NOTES.read_text()] if NOTES.exists() else []
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
