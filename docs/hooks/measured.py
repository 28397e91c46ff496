"""Tables for the page on choosing a method, from the committed result files of the benchmarks."""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Only what was measured like this file (model, calibration, test text) stands in one table.
REFERENCE = "classics-50-one-shot.json"
ZEROS = ("40 %", "50 %", "60 %", "70 %", "2:4", "4:8")
MISSING = "not measured yet"


@dataclass(frozen=True)
class Measurement:
    """One method on one model, with the loss of every window, or of all together.

    losses: nats a token, one a window; empty where the file has the mean alone. searched: a tree
    file that a search wrote, or a row that is marked as the winner of one.
    """

    zeros: str
    method: str
    expression: str
    mode: str
    updated: bool
    searched: bool
    mean: float
    windows: int
    losses: tuple[float, ...]
    seconds: float

    def perplexity(self, windows: int) -> float | None:
        """Over the first `windows` windows; None where the file does not tell."""
        if 0 < windows <= len(self.losses):
            return math.exp(sum(self.losses[:windows]) / windows)
        return math.exp(self.mean) if self.windows == windows else None

    @property
    def uses_gradients(self) -> bool:
        return re.search(r"\b[GO]\b", self.expression) is not None


Budget = Callable[[Measurement], bool]

BUDGETS: dict[str, Budget] = {
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
    """All comparable measurements under `results`; of repeated ones, one that has its losses."""
    like = _conditions(json.loads((results / REFERENCE).read_text())["provenance"])
    best: dict[tuple[object, ...], Measurement] = {}
    for file in sorted(results.glob("*.json")):
        table = json.loads(file.read_text())
        if "rows" not in table or _conditions(table.get("provenance", {})) != like:
            continue
        for row in table["rows"]:
            if row.get("perplexity") is None or _has_pieces(row, table["provenance"]["settings"]):
                continue
            measured = _measurement(row, table["provenance"])
            key = (measured.zeros, measured.method, measured.mode)
            if key not in best or len(measured.losses) >= len(best[key].losses):
                best[key] = measured
    return list(best.values())


def summary(measurements: Sequence[Measurement]) -> str:
    """The best method by zeros and budget, as a Markdown table."""
    lines = [_line("zeros", "dense", *BUDGETS), _line(*["---"] * (2 + len(BUDGETS)))]
    for zeros in ZEROS:
        rows = [row for row in measurements if row.zeros == zeros]
        windows = windows_of(rows)
        cells = [_best(filter(budget, rows), windows) for budget in BUDGETS.values()]
        dense = _dense(measurements, windows)
        shown = f"{zeros}, {windows} windows" if windows else zeros
        lines.append(_line(shown, dense, *cells))
    return "\n".join(lines)


def windows_of(rows: Sequence[Measurement]) -> int:
    """How many first windows fill most cells of a row, then compare most methods; 0 for none."""
    counts = {max(row.windows, len(row.losses)) for row in rows}

    def worth(windows: int) -> tuple[int, int, int]:
        known = [row for row in rows if row.perplexity(windows) is not None]
        filled = sum(any(map(budget, known)) for budget in BUDGETS.values())
        return filled, len(known), windows

    return max(counts, key=worth, default=0)


def table_of(page: Path, heading: str | None = None) -> str:
    """The first Markdown table of `page`, below the heading of that text if one is given."""
    lines = page.read_text().splitlines()
    start = next((n for n, line in enumerate(lines) if line.lstrip("# ") == heading), None)
    if heading is not None and start is None:
        raise ValueError(f"{page} has no heading '{heading}'")
    table: list[str] = []
    for line in lines[start or 0 :]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
    if not table:
        raise ValueError(f"{page} has no table below '{heading}'")
    return "\n".join(table)


def _has_pieces(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether G was taken on pieces of windows, which the program no longer does."""
    # A table that took rows at several lengths says it in the row.
    pieces = row.get("gradient_seqlen", settings.get("gradient_seqlen"))
    return bool(pieces) and re.search(r"\bG\b", row.get("expression") or "") is not None


def _measurement(row: dict[str, Any], provenance: dict[str, Any]) -> Measurement:
    settings, expression = provenance["settings"], row.get("expression", "")
    scope, method = row.get("scope"), row["method"]
    tree_file = method.endswith(".json")
    if tree_file:
        method = f"{expression}@{scope}" if scope else expression
    losses = tuple(row.get("losses", ()))
    # Result files from before steps had names hold the update alone.
    updated = bool({*row.get("steps", [row.get("update", "none")])} - {"refine", "none"})
    searched = tree_file or "EVOLVED" in row.get("label", "") or row.get("winner", False)
    return Measurement(
        "dense" if method == "dense" else _zeros(settings),
        method,
        expression,
        row.get("mode", ""),
        updated,
        searched,
        row["loss"],
        provenance["evaluation"]["windows"],
        losses,
        row["seconds"],
    )


def _zeros(settings: dict[str, Any]) -> str:
    return settings["pattern"] or f"{round(100 * settings['sparsity'])} %"


def _conditions(provenance: dict[str, Any]) -> tuple[object, ...] | None:
    try:
        return (
            provenance["settings"]["model"],
            provenance["calibration"]["tokens_sha256"],
            provenance["evaluation"]["text_sha256"],
            provenance["evaluation"]["seqlen"],
        )
    except KeyError:
        return None


def _best(candidates: Iterator[Measurement], windows: int) -> str:
    known = [(value, row) for row in candidates if (value := row.perplexity(windows)) is not None]
    if not known:
        return MISSING
    value, row = min(known, key=lambda pair: pair[0])
    order = " in sequence" if row.mode == "sequential" else ""
    return f"**{_shown(value)}** `{row.method}`{order}"


def _dense(measurements: Sequence[Measurement], windows: int) -> str:
    values = [row.perplexity(windows) for row in measurements if row.zeros == "dense"]
    known = [value for value in values if value is not None]
    return _shown(known[0]) if known and windows else MISSING


def _shown(perplexity: float) -> str:
    return f"{perplexity:.1f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
