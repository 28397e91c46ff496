"""The results that a report is made of, read from disk."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.record import JOURNAL
from pruner_zero.evolution.study import Study, read_json, reading
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.grammar import parse
from pruner_zero.pruning.matrix import MatrixRecord

PRUNING, TIMING, RECOVERY = "pruning.json", "timing.json", "recovery.json"

# None where whole blocks or experts are removed without a metric.
_Metric = Annotated[Expression | None, BeforeValidator(lambda text: text and parse(text))]
_Matrix = Annotated[MatrixRecord, BeforeValidator(MatrixRecord.from_json)]


class _Read(BaseModel):
    """The base of values that are read from JSON: what is not named here is left out."""

    model_config = ConfigDict(strict=True, frozen=True, arbitrary_types_allowed=True)


class _Saved(_Read):
    """settings: as asked, defaults filled in. windows: where the tokens come from, by use."""

    path: Path
    settings: dict[str, Any]
    windows: dict[str, dict[str, Any]]
    provenance: dict[str, Any]


class PruneRun(_Saved):
    """A pruned model.

    recipe: what was done, line by line. race: the masks that were judged, the best first, with
    their divergence from the dense model in nats per token. distillation: its learning curve.
    parameters: before and after, where units were removed. timing: the cost of the last process.
    """

    expression: _Metric
    pattern: str
    scope: str | None = None
    recipe: list[str] = []
    race: list[dict[str, Any]] = []
    distillation: list[dict[str, Any]] = []
    sparsity: float
    parameters: list[int] | None = None
    matrices: list[_Matrix]
    timing: dict[str, Any]

    @property
    def remarks(self) -> list[str]:
        """What is to be said of single matrices."""
        return [f"{record.name}: {record.note}" for record in self.matrices if record.note]


class RecoveryRun(_Saved):
    """A recovered model.

    curve: the points of the learning curve, with seconds where the budget was in minutes. timing:
    the cost of the last process.
    """

    curve: list[dict[str, Any]]
    kept_step: int
    loss_before: float
    loss_after: float
    timing: dict[str, Any]


class Row(_Read):
    """What `compare` writes of one method, as `Comparison` says."""

    method: str
    perplexity: float | None
    sparsity: float | None
    expression: _Metric = None
    scope: str | None = None
    mode: str | None = None
    pattern: str = ""
    parameters: int | None = None
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    error: str | None = None
    notes: list[str] = []

    @property
    def group(self) -> str | None:
        """The comparison group: a scope, `unit` for removed units, None for N:M."""
        return self.scope or (None if re.fullmatch(r"\d+:\d+", self.pattern) else "unit")


class ComparisonRun(_Saved):
    """A table of methods."""

    rows: list[Row]

    @property
    def dense(self) -> Row | None:
        """The row of the unpruned model."""
        return next((row for row in self.rows if row.method == "dense"), None)

    @property
    def groups(self) -> tuple[list[Row], list[Row]]:
        """The rows of pruning methods: those that keep the model's size, and smaller models.

        A smaller model does not compete with a model of full size. The lowest perplexity is first;
        rows without a perplexity are last.
        """
        full = max((row.parameters or 0 for row in self.rows), default=0)
        groups: tuple[list[Row], list[Row]] = ([], [])
        for row in self.rows:
            if row.method != "dense":
                groups[(row.parameters or full) < full].append(row)
        for group in groups:
            group.sort(key=lambda row: math.inf if row.perplexity is None else row.perplexity)
        return groups

    @property
    def best(self) -> list[Row]:
        """The row with the lowest perplexity of each group that has one."""
        return [group[0] for group in self.groups if group and group[0].perplexity is not None]

    @property
    def remarks(self) -> list[str]:
        """Errors and notes of the methods."""
        lines = ((row, filter(None, (row.error, *row.notes))) for row in self.rows)
        return [f"{row.method}: {line}" for row, found in lines for line in found]


class Measured(_Read):
    """The perplexity of a model on a text; None where it overflows."""

    perplexity: float | None
    text: dict[str, Any]


class Speed(_Read):
    """The size and speed of a model in what `evaluate --speed` writes."""

    model: str
    parameters: int
    bytes: int
    prefill: float
    decode: float


class EvaluationRun(_Saved):
    """What `evaluate` measured of one model; `speed` may have those measured beside it too."""

    texts: list[Measured] = []
    speed: list[Speed] = []
    tasks: list[dict[str, Any]] = []


Result = Study | PruneRun | RecoveryRun | ComparisonRun | EvaluationRun


def read_result(path: Path) -> Result:
    """The result at `path`: a folder of search, prune or recover, a file of compare or evaluate.

    Raises PrunerZeroError where it is none of these, or damaged.
    """
    if not path.exists():
        raise PrunerZeroError(f"{path} does not exist: give a folder or file of results")
    with reading(path):
        if (path / JOURNAL).is_file():
            return Study.open(path)
        if (path / RECOVERY).is_file():
            return RecoveryRun(**_read_folder(path, RECOVERY, "training", "validation"))
        if (path / PRUNING).is_file():
            return PruneRun(**_read_folder(path, PRUNING, "calibration"))
        if path.is_file() and path.suffix == ".json":
            values = read_json(path)
            if "rows" in values and "provenance" in values:
                return _read_comparison(path, values)
            if not values.keys().isdisjoint(("losses", "texts", "speed", "tasks")):
                return _read_evaluation(path, values)
    raise PrunerZeroError(
        f"{path} holds no result: give the folder that search, prune or recover wrote, "
        "or the .json file that compare or evaluate wrote"
    )


def _read_folder(path: Path, record: str, *uses: str) -> dict[str, Any]:
    """The fields of the run whose `record` is in the folder `path`, with windows for `uses`."""
    values = read_json(path / record)
    timing = read_json(path / TIMING) if (path / TIMING).is_file() else {}
    timing.pop("files", None)
    return {**values, "path": path, "windows": _windows(values, *uses), "timing": timing}


def _read_comparison(path: Path, values: Mapping[str, Any]) -> ComparisonRun:
    if not values.get("complete", True):
        raise PrunerZeroError(
            f"{path} lacks rows, since compare was interrupted: repeat its command to add them"
        )
    origin = dict(values["provenance"])
    windows = _windows(origin, "calibration", "evaluation")
    settings = origin.pop("settings")
    rest = {key: value for key, value in origin.items() if key not in windows}
    return ComparisonRun(
        **{**values, "path": path, "settings": settings, "windows": windows, "provenance": rest}
    )


def _read_evaluation(path: Path, values: Mapping[str, Any]) -> EvaluationRun:
    texts = values.get("texts") or ([values] if "losses" in values else [])
    speed: Sequence[Any] = values.get("speed", ())
    # Earlier files do not name the model of a perplexity.
    model = values.get("model") or (speed[0]["model"] if speed else path.name)
    settings = {"model": model, **values.get("settings", {})}
    windows = {text["text"]["text"]: text["text"] for text in texts}
    given = {"path": path, "settings": settings, "windows": windows, "texts": texts}
    return EvaluationRun(**{"provenance": {}, **values, **given})


def _windows(values: Mapping[str, Any], *uses: str) -> dict[str, Any]:
    """The descriptions of windows among `values`, without empty ones."""
    return {use: values[use] for use in uses if values.get(use)}
