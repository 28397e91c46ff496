"""The table of a comparison, and how an interrupted one is continued."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import check_file, write_json
from pruner_zero.progress import note
from pruner_zero.table import Tabular

_COSTS = ("seconds", "peak_rss_bytes", "peak_gpu_bytes")
# Settings that may change when a table is continued: a row names its method, and where rows were
# made changes them by rounding alone.
_FREE = {"methods", "device"}


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """A table with one row for each method, and its provenance.

    A row holds `method`, `perplexity` (None where it overflows, or where the method failed and
    `error` has the reason), `sparsity` over the pruned matrices, `parameters` and their `bytes`,
    fewer where whole units are removed, `seconds`, `peak_rss_bytes` and the parts of the method.
    provenance: of the process that began the table; under `continued` is what differed in later
    ones. complete: whether every method has its row; False in the file of a run that was
    interrupted.
    """

    shown = ("method", "mode", "perplexity", "sparsity", "parameters", "bytes", *_COSTS, "error")

    rows: list[dict[str, Any]]
    provenance: dict[str, Any]
    complete: bool = True

    def caption(self) -> str:
        """What the perplexities were measured on."""
        tested = self.provenance["evaluation"]
        return (
            f"perplexity per token on {tested['windows']} windows of {tested['seqlen']} tokens "
            f"of {tested['text']}"
        )

    def to_json(self) -> dict[str, Any]:
        """`rows`, `provenance` and `complete`, as JSON values."""
        return {"rows": self.rows, "provenance": self.provenance, "complete": self.complete}

    def write(self, file: Path) -> None:
        """Write the table to `file` in JSON. Raises PrunerZeroError."""
        write_json(file, self.to_json())


def read_unfinished(file: Path, overwrite: bool) -> Comparison | None:
    """The interrupted table in `file`; None where there is no file, or if it may be overwritten.

    Raises PrunerZeroError where the file holds a finished table or anything else.
    """
    if not check_file(file, {"rows"}).exists() or overwrite:
        return None
    match json.loads(file.read_bytes()):
        case {
            "rows": list(rows),
            "provenance": {"settings": {}, "calibration": {}, "evaluation": {}} as origin,
            "complete": False,
        } if all(isinstance(row, dict) and "method" in row for row in rows):
            return Comparison(rows, origin, complete=False)
    raise PrunerZeroError(f"{file} holds a finished table: choose another file, or add --overwrite")


def check_continued(file: Path, table: Comparison, origin: Mapping[str, Any]) -> None:
    """Raise PrunerZeroError where `table`, read from `file`, is of another comparison.

    origin: the provenance of this comparison, or the part of it that is known so far.
    """
    then, now = _identity(table.provenance), _identity(origin)
    if changed := [name for name in now if now[name] != then.get(name)]:
        raise _changed(file, ", ".join(changed))


def continued(
    file: Path, table: Comparison, origin: dict[str, Any], heads: Mapping[str, Mapping[str, Any]]
) -> Comparison:
    """The rows of `table`, read from `file`, that this comparison need not make again.

    origin: the provenance of this comparison. heads: by method, the part of its row that is known
    before the method runs. Rows that differ from it, as after a change of a tree file, and rows of
    methods that failed are left out. Raises PrunerZeroError as `check_continued` does, and where
    the table has rows of other methods.
    """
    check_continued(file, table, origin)
    rows = []
    for row in (row for row in table.rows if "error" not in row):
        if row["method"] not in heads:
            raise _changed(file, "--methods")
        if json.loads(json.dumps(heads[row["method"]])).items() <= row.items():
            rows.append(row)
        else:
            note(f"{row['method']} is measured again, because the method has changed")
    provenance = table.provenance
    differing = {name: value for name, value in origin.items() if provenance.get(name) != value}
    if differing:
        provenance = {**provenance, "continued": [*provenance.get("continued", []), differing]}
    if rows:
        note(f"{file} has {len(rows)} of {len(heads)} rows already")
    return Comparison(rows, provenance, complete=False)


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What a table must share with the comparison that continues it, as far as it is known."""
    settings = provenance.get("settings", {})
    hashes = {
        "the version of this program": provenance.get("pruner_zero"),
        "the model's weights": provenance.get("model_sha256"),
        "the tokens of the calibration": provenance.get("calibration", {}).get("tokens_sha256"),
        "the tokens of the text": provenance.get("evaluation", {}).get("tokens_sha256"),
    }
    return {
        **{f"--{n.replace('_', '-')}": settings[n] for n in settings if n not in _FREE},
        **{name: value for name, value in hashes.items() if value},
    }


def _changed(file: Path, changed: str) -> PrunerZeroError:
    return PrunerZeroError(
        f"{file} holds an unfinished table of other settings ({changed} changed): repeat its "
        "command, choose another file, or discard it with --overwrite"
    )
