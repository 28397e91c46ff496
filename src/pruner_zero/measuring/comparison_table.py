"""The table of a comparison, and the rows of a table that was interrupted."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.files import write_atomic
from pruner_zero.table import Tabular

_COSTS = ("seconds", "peak_rss_bytes", "peak_gpu_bytes")


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """A table with one row for each method, and its provenance.

    A row holds `method`, `perplexity` (None where it overflows, or where the method failed and
    `error` has the reason), `sparsity` over the pruned matrices, `parameters` and their `bytes`,
    fewer where whole units are removed, `seconds`, `peak_rss_bytes` and the parts of the method.
    complete: whether every method has its row; False in the file of a run that was interrupted.
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
        write_atomic(file, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")


def read_unfinished(
    file: Path, origin: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]]
) -> Comparison | None:
    """The interrupted table in `file` that this comparison continues, None where it holds none.

    origin: the provenance of this comparison without its costs, which must be that of the table.
    heads: by method, the part of its row that is known before the method runs. Rows that differ
    from it, as after a change of a tree file, and rows of methods that failed are left out.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        table = json.loads(file.read_bytes())
        known = json.loads(json.dumps({"origin": origin, "heads": heads}))
        if table["complete"] is False and known["origin"].items() <= table["provenance"].items():
            rows = [
                row
                for row in table["rows"]
                if known["heads"][row["method"]].items() <= row.items() and "error" not in row
            ]
            return Comparison(rows, table["provenance"], complete=False)
    return None
