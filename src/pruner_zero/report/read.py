"""The results that a report is made of, read from disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import Study
from pruner_zero.evolution.archive import JOURNAL
from pruner_zero.evolution.study import read_json, reading
from pruner_zero.metric import parse
from pruner_zero.pruning.matrix import MatrixRecord

PRUNING, TIMING, RECOVERY = "pruning.json", "timing.json", "recovery.json"


@dataclass(frozen=True)
class _Saved:
    path: Path
    settings: Mapping[str, Any]
    windows: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class PruneRun(_Saved):
    """A pruned model: its settings, its matrices.

    steps: what followed the mask; asymmetric: towards the dense model's outputs. distill: the steps
    of the training after them. timing: the cost of the last process.
    """

    expression: str
    pattern: str
    steps: tuple[str, ...]
    asymmetric: bool
    distill: int
    sparsity: float
    matrices: tuple[MatrixRecord, ...]
    timing: Mapping[str, Any]


@dataclass(frozen=True)
class ComparisonRun(_Saved):
    """A table of methods, a row each as `comparison.Comparison` writes them."""

    rows: tuple[Mapping[str, Any], ...]

    @property
    def competing(self) -> list[Mapping[str, Any]]:
        """The rows of pruning methods, without smaller models if there are models of full size.

        A smaller model is not compared with a model of the dense size.
        """
        most = max((row.get("parameters") or 0 for row in self.rows), default=0)
        rows = [row for row in self.rows if "expression" in row]
        large = [row for row in rows if row.get("parameters", most) == most]
        return large if any(row["perplexity"] is not None for row in large) else rows

    @property
    def ranked(self) -> list[Mapping[str, Any]]:
        """The rows of competing methods that have a perplexity, the lowest first."""
        rows = [row for row in self.competing if row["perplexity"] is not None]
        return sorted(rows, key=lambda row: float(row["perplexity"]))


Result = Study | PruneRun | ComparisonRun


def read_result(path: Path) -> Result:
    """The result at `path`: the folder of a search or a prune, or the JSON file of a comparison.

    Raises PrunerZeroError where it is none of these, or damaged.
    """
    if not path.exists():
        raise PrunerZeroError(f"{path} does not exist: give a folder or file of results")
    with reading(path):
        if (path / JOURNAL).is_file():
            return Study.open(path)
        if (path / RECOVERY).is_file():
            raise PrunerZeroError(f"{path} was made by recover: give the folder that prune wrote")
        if (path / PRUNING).is_file():
            return _read_prune(path)
        if path.is_file() and path.suffix == ".json":
            return _read_comparison(path)
    raise PrunerZeroError(
        f"{path} holds no result: give the folder that search or prune wrote, "
        "or the .json file that compare wrote"
    )


def _read_prune(path: Path) -> PruneRun:
    values = read_json(path / PRUNING)
    if values["expression"] is None:
        raise PrunerZeroError(
            f"{path} was made by --structure {values['settings']['structure']}, without a metric "
            "that a report could show: give other results"
        )
    timing = read_json(path / TIMING) if (path / TIMING).is_file() else {}
    timing.pop("files", None)
    return PruneRun(
        path,
        dict(values["settings"]),
        {"calibration": values["calibration"]} if values["calibration"] else {},
        values["provenance"],
        str(parse(values["expression"])),
        str(values["pattern"]),
        tuple(values["steps"]),
        bool(values["asymmetric"]),
        int(values["distill"]),
        float(values["sparsity"]),
        tuple(MatrixRecord.from_json(record) for record in values["matrices"]),
        timing,
    )


def _read_comparison(path: Path) -> ComparisonRun:
    values = read_json(path)
    if "rows" not in values or "provenance" not in values:
        raise PrunerZeroError(f"{path} is no comparison: give the .json file that compare wrote")
    if not values.get("complete", True):
        raise PrunerZeroError(
            f"{path} lacks rows, since compare was interrupted: repeat its command to add them"
        )
    origin = dict(values["provenance"])
    settings = dict(origin.pop("settings"))
    described = {name: origin.pop(name, None) for name in ("calibration", "evaluation")}
    windows = {name: text for name, text in described.items() if text}
    rows = tuple(values["rows"])
    # Raises where a row lacks a required key, or holds a wrong type or an invalid metric.
    for row in rows:
        costs = ("seconds", "parameters")
        for number in (row["perplexity"], row["sparsity"], *map(row.get, costs)):
            if not isinstance(number, float | int | None):
                raise TypeError(f"{number!r} is no number")
        if not isinstance(row["method"], str):
            raise TypeError(f"{row['method']!r} is no method")
        # Whole blocks are removed without a metric.
        if row.get("expression") is not None:
            parse(row["expression"])
    return ComparisonRun(path, settings, windows, origin, rows)
