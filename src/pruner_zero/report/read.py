"""What a report is made of: results as they lie on disk, read into values."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.evolution.archive import JOURNAL, Record, SearchJournal
from pruner_zero.metric import ParseError, parse
from pruner_zero.pruning import MatrixRecord

_HASHES = ("calibration_tokens", "search_tokens", "model_weights")
RUN, PRUNING, TIMING = "run.json", "pruning.json", "timing.json"


@dataclass(frozen=True)
class SearchRun:
    """A search, finished or not.

    settings: as asked, defaults filled in. batches: after each batch, how many candidates had
    been judged and the seconds since the run began. windows: where the tokens come from, by
    their use (calibration, search).
    """

    path: Path
    settings: Mapping[str, Any]
    records: tuple[Record, ...]
    batches: tuple[tuple[int, float], ...]
    windows: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class PruneRun:
    """A pruned model: what was asked and done, and its matrices. timing: of the last process."""

    path: Path
    settings: Mapping[str, Any]
    expression: str
    pattern: str
    update: str
    sparsity: float
    matrices: tuple[MatrixRecord, ...]
    windows: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    timing: Mapping[str, Any]


@dataclass(frozen=True)
class ComparisonRun:
    """A table of methods: a row each, as `comparison.Comparison` tells."""

    path: Path
    settings: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    windows: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]


Result = SearchRun | PruneRun | ComparisonRun


def read_result(path: Path) -> Result:
    """The result at `path`: the folder of a search or a prune, or the JSON file of a comparison.

    Raises PrunerZeroError where it is none of these, or damaged.
    """
    reader = _reader(path)
    try:
        return reader(path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ParseError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", longest=120)
        raise PrunerZeroError(
            f"{path} is damaged or of another version ({reason}): restore it"
        ) from error


def _reader(path: Path) -> Callable[[Path], Result]:
    if not path.exists():
        raise PrunerZeroError(f"{path} does not exist: give a folder or file of results")
    if (path / JOURNAL).is_file():
        return _read_search
    if (path / PRUNING).is_file():
        return _read_prune
    if path.is_file() and path.suffix == ".json":
        return _read_comparison
    raise PrunerZeroError(
        f"{path} holds no result: give the folder that search or prune wrote, "
        "or the .json file that compare wrote"
    )


def _read_search(path: Path) -> SearchRun:
    told = _read_json(path / RUN) if (path / RUN).is_file() else {}
    journal = SearchJournal.of(path)
    return SearchRun(
        path,
        told.get("settings") or _asked(journal.settings),
        journal.records,
        tuple(journal.batches),
        {name: told[name] for name in ("calibration", "search") if name in told},
        told.get("provenance", {}),
    )


def _asked(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among what the journal was begun with, which also holds hashes."""
    return {name: value for name, value in identity.items() if name not in _HASHES}


def _read_prune(path: Path) -> PruneRun:
    told = _read_json(path / PRUNING)
    return PruneRun(
        path,
        dict(told["settings"]),
        str(parse(told["expression"])),
        str(told["pattern"]),
        str(told["update"]),
        float(told["sparsity"]),
        tuple(MatrixRecord.from_json(one) for one in told["matrices"]),
        {"calibration": told["calibration"]} if told["calibration"] else {},
        told["provenance"],
        _read_json(path / TIMING) if (path / TIMING).is_file() else {},
    )


def _read_comparison(path: Path) -> ComparisonRun:
    told = _read_json(path)
    if "rows" not in told or "provenance" not in told:
        raise PrunerZeroError(f"{path} is no comparison: give the .json file that compare wrote")
    origin = dict(told["provenance"])
    settings = dict(origin.pop("settings"))
    windows = {name: origin.pop(name) for name in ("calibration", "evaluation") if name in origin}
    rows = tuple(told["rows"])
    for row in rows:
        _check_row(row)
    return ComparisonRun(path, settings, rows, windows, origin)


def _check_row(row: Mapping[str, Any]) -> None:
    """Raise where a row lacks what all have, or holds what is no number or no metric."""
    for number in (row["perplexity"], row["sparsity"], row.get("seconds")):
        if not isinstance(number, float | int | None):
            raise TypeError(f"{number!r} is no number")
    if not isinstance(row["method"], str):
        raise TypeError(f"{row['method']!r} is no method")
    if "expression" in row:
        parse(row["expression"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PrunerZeroError(f"{path} is not valid JSON: restore the file") from error
    if not isinstance(value, dict):
        raise PrunerZeroError(f"{path} is damaged: it holds no object")
    return value
