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

    shown = (
        *("method", "perplexity", "sparsity", "parameters", "bytes"),
        *("seconds", "peak_rss_bytes", "peak_gpu_bytes", "error"),
    )

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


@dataclass(frozen=True)
class TableFile:
    """The file that a comparison writes, None for none, and the interrupted table in it, if any."""

    file: Path | None
    begun: Comparison | None = None

    @classmethod
    def open(cls, output: str | Path | None, overwrite: bool) -> "TableFile":
        """The file `output`, whose table may be overwritten or is interrupted.

        Raises PrunerZeroError where it holds a finished table or anything else.
        """
        if output is None:
            return cls(None)
        file = check_file(output, {"rows"})
        if not file.exists() or overwrite:
            return cls(file)
        match json.loads(file.read_bytes()):
            case {
                "rows": list(rows),
                "provenance": {"settings": {}, "calibration": {}, "evaluation": {}} as origin,
                "complete": False,
            } if all(isinstance(row, dict) and "method" in row for row in rows):
                return cls(file, Comparison(rows, origin, complete=False))
        raise PrunerZeroError(
            f"{file} holds a finished table: choose another file, or add --overwrite"
        )

    def write(self, table: Comparison) -> None:
        """Write the table in JSON, where there is a file for it. Raises PrunerZeroError."""
        if self.file:
            write_json(self.file, table.to_json())

    def check(self, origin: Mapping[str, Any], changed: str = "") -> None:
        """Raise PrunerZeroError where the interrupted table is of another comparison.

        origin: the provenance of this comparison, or the part of it that is known so far. changed:
        what is known to be another one.
        """
        if self.begun:
            then, now = _identity(self.begun.provenance), _identity(origin)
            differing = [name for name in now if now[name] != then.get(name)]
            if changed := changed or ", ".join(differing):
                raise PrunerZeroError(
                    f"{self.file} holds an unfinished table of other settings ({changed} changed): "
                    "repeat its command, choose another file, or discard it with --overwrite"
                )

    def continued(
        self, origin: dict[str, Any], heads: Mapping[str, Mapping[str, Any]]
    ) -> Comparison:
        """A table with the rows of the interrupted one that need not be made again.

        origin: the provenance of this comparison. heads: by method, the part of its row that is
        known before the method runs. Rows that differ from it, as after a change of a tree file,
        and rows of methods that failed are left out. Raises PrunerZeroError as `check` does, and
        where there are rows of other methods.
        """
        self.check(origin)
        if not self.begun:
            return Comparison([], origin, complete=False)
        rows = []
        for row in (row for row in self.begun.rows if "error" not in row):
            if row["method"] not in heads:
                self.check(origin, "--methods")
            elif json.loads(json.dumps(heads[row["method"]])).items() <= row.items():
                rows.append(row)
            else:
                note(f"{row['method']} is measured again, because the method has changed")
        then = self.begun.provenance
        if differing := {name: value for name, value in origin.items() if then.get(name) != value}:
            then = {**then, "continued": [*then.get("continued", []), differing]}
        if rows:
            note(f"{self.file} has {len(rows)} of {len(heads)} rows already")
        return Comparison(rows, then, complete=False)


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
