"""The default's distillation by learning rates and steps, on models whose weights differ in size.

    pruner-zero prune MODEL --sparsity 0.5 --distill 0 -o PRUNED
    python benchmarks/rate.py NAME MODEL PRUNED --text wiki.valid.raw

A run is RATE:STEPS, on the windows that the model wrote; the rate is a share of each matrix's root
mean square, and 0:0 is the model before the steps. Measures the divergence from the dense
model on WikiText-2 validation and on Python's documentation (2 windows of 512 tokens each, at their
ends), and at 40 beginnings of paragraphs. Runs that are in the result file are kept. Writes
results/rate.json and rate.md.
"""

import argparse
import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from proof import divergence, in_bfloat16
from pruner_zero.calibration import self_windows
from pruner_zero.files import write_json
from pruner_zero.models import LanguageModel, find_matrices, load_model
from pruner_zero.recovery import distill, distillation
from pruner_zero.settings import RecoverSettings
from pruner_zero.text.corpus import load_corpus
from tables import markdown
from why import TEXT, of_texts

HERE = Path(__file__).parent
FILE = HERE / "results" / "rate.json"
NOTES = HERE / "results" / "rate-notes.md"
RUNS = ("0:0", "0.001:40")
WINDOWS, SEQLEN = 96, 256
Report = dict[str, dict[str, Any]]


def main() -> None:
    """Measure the runs of a model that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="a name for the result, or `page`")
    parser.add_argument("model", nargs="?", help="what prune takes as MODEL")
    parser.add_argument("pruned", nargs="?", help="the folder that prune wrote with --distill 0")
    parser.add_argument("--text", help="WikiText-2 validation, raw")
    parser.add_argument("--runs", nargs="*", default=RUNS, metavar="RATE:STEPS")
    given = parser.parse_args()
    report: Report = json.loads(FILE.read_text()) if FILE.exists() else {}
    if given.name != "page":
        pydoc = load_corpus("builtin:pydoc", role="calibration")
        texts = {TEXT: Path(given.text).read_text(), "pydoc": pydoc.text}
        dense, pruned = load_model(given.model), load_model(given.pruned)
        windows = {
            name: rows[: 2 if name in texts else 40]
            for name, rows in of_texts(dense, texts).items()
        }
        row = report.setdefault(given.name, {"size": size(dense), "runs": {}})
        before = deepcopy(pruned.model.state_dict())
        for run in given.runs:
            if run not in row["runs"]:
                pruned.model.load_state_dict(before)
                row["runs"][run] = measure(pruned, dense, run, windows)
                write_json(FILE, report)
                print(given.name, run, row["runs"][run], flush=True)
    (HERE / "rate.md").write_text(page(report))


def size(model: LanguageModel) -> float:
    """The root mean square of all weights of the model's matrices."""
    weights = [matrix.weight.detach() for matrix in find_matrices(model.model)]
    squares = sum(float(weight.float().square().sum()) for weight in weights)
    return float((squares / sum(weight.numel() for weight in weights)) ** 0.5)


def measure(
    pruned: LanguageModel, dense: LanguageModel, run: str, windows: dict[str, Tensor]
) -> dict[str, float]:
    """The divergences after the steps of `run`, which change `pruned` in place."""
    rate, steps = run.split(":")
    if int(steps):
        written = self_windows(dense, WINDOWS, SEQLEN, 0)
        settings = partial(RecoverSettings, learning_rate=float(rate))
        with mock.patch.object(distillation, "RecoverSettings", settings):
            distill(pruned, dense, written, int(steps), matrices=find_matrices(pruned.model))
    with in_bfloat16(pruned), in_bfloat16(dense):
        return {name: round(divergence(pruned, dense, rows), 4) for name, rows in windows.items()}


def page(report: Report) -> str:
    """A row for each model and rate."""
    lines = [
        "# The learning rate of the distillation",
        "",
        "Made by `python benchmarks/rate.py NAME MODEL PRUNED --text wiki.valid.raw`, where"
        " `pruner-zero prune MODEL --sparsity 0.5 --distill 0 -o PRUNED` wrote the folder: the"
        " default without its distillation, and with it. Divergence from the dense model, nats per"
        " token. A rate is a share of the root mean square of each matrix; *size* is that of all"
        " matrices. [Result file](results/rate.json).",
        "",
    ]
    table = []
    for name, row in report.items():
        for run, values in row["runs"].items():
            rate, steps = run.split(":")
            mean = sum(values.values()) / len(values)
            shown = [f"{value:.3f}" for value in (*values.values(), mean)]
            table.append([name, f"{row['size']:.3f}", rate, steps, *shown])
    header = ["model", "size", "rate", "steps", "WikiText-2", "Python docs", "beginnings", "mean"]
    return "\n".join([*lines, markdown(header, table), NOTES.read_text()])


if __name__ == "__main__":
    main()
