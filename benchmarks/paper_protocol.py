"""The protocol of the paper's tables: its settings, its numbers, and the cells to measure."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pruner_zero.calibration.store import cache_key
from pruner_zero.pruning import parse_method
from pruner_zero.text.corpus import Corpus
from updates import EVOLVED, TABLES, evolved

PUBLISHED = Path(__file__).parent / "published.json"
TASKS = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
# The paper's settings, by the names of the script's options.
PAPER: dict[str, Any] = {
    "calibration": "c4",
    "gradients": "wikitext2",
    "text": "wikitext2",
    "windows": 128,
    "windows_eval": None,
    "tasks": list(TASKS),
    "include_path": None,
    "limit": None,
}
# The authors' script takes gradients on windows of this length, whatever the model's context.
GRADIENT_SEQLEN = 2048

DENSE = "dense"
PUBLISHED_TREE = "pruner-zero"
# Ends the label of the published tree where its gradients come from the calibration text.
ONE_TEXT = ", one text"
METHODS = (DENSE, "magnitude", "wanda", "sparsegpt", PUBLISHED_TREE)
PERPLEXITY = "perplexity"

# Loads the text of an option: calibration, gradients or text.
LoadText = Callable[[str], Corpus]


@cache
def published() -> dict[str, Any]:
    """The paper's perplexities and window lengths by its names of models."""
    columns: dict[str, Any] = json.loads(PUBLISHED.read_text())["models"]
    return columns


def column_of(model: str) -> str | None:
    """The paper's name of `model`; None where no name of a model in the paper matches."""
    name = model.rstrip("/").split("/")[-1].lower()
    return next((key for key, column in published().items() if name in column["names"]), None)


@dataclass(frozen=True)
class Row:
    """One model of the tables.

    zeros: a name of TABLES, or "dense". pruning: keywords of `prune` as JSON values, empty for
    the dense model. text: the option with its calibration text, None where it needs no text.
    """

    zeros: str
    label: str
    pruning: dict[str, Any]
    text: str | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a row.

    measure: "perplexity" or the name of a task. settings: every setting that decides the number, as
    JSON values.
    """

    row: Row
    measure: str
    settings: dict[str, Any]

    @property
    def file(self) -> str:
        """The name of its file."""
        label = re.sub(r"[^\w.+@]+", "-", self.row.label)[:60]
        return f"{self.row.zeros}-{label}-{self.measure}-{cache_key(self.settings)}.json"


def plan(settings: dict[str, Any]) -> list[Row]:
    """The models in the order in which they are measured. Raises PrunerZeroError."""
    pruned = [label for label in settings["methods"] if label != DENSE]
    dense = [Row(DENSE, DENSE, {})] if DENSE in settings["methods"] else []
    return dense + [
        _pruned(zeros, label, settings) for zeros in settings["zeros"] for label in pruned
    ]


def _pruned(zeros: str, label: str, settings: dict[str, Any]) -> Row:
    metric = evolved(zeros) if EVOLVED in label else ""
    method = label.removesuffix(ONE_TEXT).replace(EVOLVED, metric)
    pattern = TABLES[zeros][0]
    if method == "magnitude" and "sparsity" in pattern:
        # As in the papers' tables: a threshold for each matrix.
        method = "magnitude@matrix"
    pruning = {"metric": method, **pattern}
    parsed = parse_method(method, **pattern)
    if not parsed.kinds:
        return Row(zeros, label, pruning)
    text, seqlen = "calibration", settings["seqlen"]
    if label == PUBLISHED_TREE:
        text, seqlen = "gradients", min(seqlen, GRADIENT_SEQLEN)
    pruning |= {"windows": settings["windows"], "seqlen": seqlen, "seed": 0}
    return Row(zeros, label, pruning, text)


def weights_settings(row: Row, settings: dict[str, Any], load_text: LoadText) -> dict[str, Any]:
    """Every setting that decides the weights of `row`, as JSON values."""
    text = load_text(row.text).sha256 if row.text else None
    return {
        "model": settings["model"],
        "dtype": settings["dtype"],
        **row.pruning,
        "calibration_sha256": text,
    }


def cells(row: Row, settings: dict[str, Any], load_text: LoadText) -> list[Cell]:
    """The numbers of `row`."""
    weights = weights_settings(row, settings, load_text)
    test = {
        "text_sha256": load_text("text").sha256,
        "text_seqlen": settings["seqlen"],
        "windows_eval": settings["windows_eval"],
    }
    numbers = [Cell(row, PERPLEXITY, weights | test)]
    if row.zeros == DENSE or row.zeros in settings["task_zeros"]:
        for task in settings["tasks"]:
            questions = {
                "task": task,
                **{name: settings[name] for name in ("include_path", "limit")},
            }
            numbers.append(Cell(row, task, weights | questions))
    return numbers
