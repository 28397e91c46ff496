"""Tables of the pages from committed result files of the benchmarks, and from other pages."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Only what was measured like this file (model, calibration, test text) stands in one table.
REFERENCE = "classics-50-one-shot.json"
WINDOWS = 12
ZEROS = ("40 %", "50 %", "60 %", "70 %", "2:4", "4:8")
MISSING = "not measured"


@dataclass(frozen=True)
class Measurement:
    """One method on the first WINDOWS windows of the test text.

    searched: its metric is the result of a search.
    """

    zeros: str
    method: str
    expression: str
    mode: str
    updated: bool
    searched: bool
    perplexity: float

    @property
    def uses_gradients(self) -> bool:
        return re.search(r"\b[GO]\b", self.expression) is not None


BUDGETS: dict[str, Callable[[Measurement], bool]] = {
    "weights stay, forward passes only": lambda row: (
        not (row.updated or row.searched or row.uses_gradients)
    ),
    "weights stay, and gradients": lambda row: (
        not (row.updated or row.searched) and row.uses_gradients
    ),
    "weights stay, and a search": lambda row: row.searched and not row.updated,
    "weights are updated": lambda row: row.updated,
}


def read(results: Path) -> list[Measurement]:
    """All comparable measurements in the files under `results`."""
    like = _conditions(json.loads((results / REFERENCE).read_text()))
    found = []
    for file in sorted(results.glob("*.json")):
        table = json.loads(file.read_text())
        if "rows" in table and _conditions(table) == like:
            rows = (_measurement(row, table["provenance"]) for row in table["rows"])
            found += [row for row in rows if row is not None]
    return found


def summary(measurements: Sequence[Measurement]) -> str:
    """The best method by zeros and budget, as a Markdown table."""
    lines = [_line("zeros", *BUDGETS), _line(*["---"] * (1 + len(BUDGETS)))]
    for zeros in ZEROS:
        rows = [row for row in measurements if row.zeros == zeros]
        lines.append(_line(zeros, *(_best(list(filter(each, rows))) for each in BUDGETS.values())))
    return "\n".join(lines)


def table_of(page: Path, heading: str = "") -> str:
    """The first Markdown table of `page`, below the heading of that text if one is given."""
    text = page.read_text()
    if heading:
        found = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"{page} has no heading '{heading}'")
        text = text[found.end() :]
    table = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    if table is None:
        raise ValueError(f"{page} has no table below '{heading}'")
    return table[0].rstrip("\n")


def _measurement(row: dict[str, Any], provenance: dict[str, Any]) -> Measurement | None:
    """None where the row failed, has other windows, or gradients of pieces of windows."""
    settings, expression = provenance["settings"], row.get("expression") or ""
    losses = row.get("losses", ())[:WINDOWS]
    if len(losses) < WINDOWS:
        losses = [row["loss"]] if provenance["evaluation"]["windows"] == WINDOWS else []
    pieces = row.get("gradient_seqlen", settings.get("gradient_seqlen"))
    if row.get("perplexity") is None or not losses or (pieces and re.search(r"\bG\b", expression)):
        return None
    scope, method = row.get("scope"), row["method"]
    tree_file = method.endswith(".json")
    if tree_file:
        method = f"{expression}@{scope}" if scope else expression
    zeros = settings["pattern"] or f"{round(100 * settings['sparsity'])} %"
    return Measurement(
        "dense" if method == "dense" else zeros,
        method,
        expression,
        row.get("mode", ""),
        # Result files from before steps had names hold the update alone.
        bool({*row.get("steps", [row.get("update", "none")])} - {"refine", "none"}),
        tree_file or "EVOLVED" in row.get("label", "") or row.get("winner", False),
        math.exp(sum(losses) / len(losses)),
    )


def _conditions(table: dict[str, Any]) -> tuple[object, ...] | None:
    provenance = table.get("provenance", {})
    try:
        return (
            provenance["settings"]["model"],
            provenance["calibration"]["tokens_sha256"],
            provenance["evaluation"]["text_sha256"],
            provenance["evaluation"]["seqlen"],
        )
    except KeyError:
        return None


def _best(rows: Sequence[Measurement]) -> str:
    if not rows:
        return MISSING
    best = min(rows, key=lambda row: row.perplexity)
    order = " in sequence" if best.mode == "sequential" else ""
    return f"**{best.perplexity:.1f}** `{best.method}`{order}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
