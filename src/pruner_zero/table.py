"""Results as tables: text where they are printed, HTML in notebooks, frames for pandas."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

from markupsafe import Markup, escape

from pruner_zero.errors import PrunerZeroError, excerpt

# Rows beyond this many are counted instead of shown; `to_rows` and `to_pandas` have all.
MOST_SHOWN = 40
_LONGEST = 120


class Tabular(ABC):
    """A result that is shown as a table.

    shown: the names of the columns to show, in order; empty for all. A column without any value
    is left out. rows: what `to_rows` returns where a result does not override it.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    rows: Sequence[Mapping[str, Any]]

    def to_rows(self) -> Sequence[Mapping[str, Any]]:
        """All rows, each a mapping from columns to values; a row may lack columns."""
        return self.rows

    @abstractmethod
    def caption(self) -> str:
        """One line that describes the table."""

    def to_pandas(self) -> Any:
        """All rows and columns as a `pandas.DataFrame`.

        Raises PrunerZeroError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise PrunerZeroError(
                "pandas is not installed: pip install pandas, or take to_rows() instead"
            ) from error
        return pandas.DataFrame(list(self.to_rows()))

    def __repr__(self) -> str:
        header, rows, more = self._cells()
        lines = aligned(header, rows, len(header)) if rows else []
        return "\n".join([self.caption(), *lines, *more])

    def _repr_html_(self) -> str:
        header, rows, more = self._cells()
        head = element("tr", *(element("th", name) for name in header))
        body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
        table = element("table", element("thead", head), element("tbody", *body))
        caption = element("div", self.caption())
        return caption + (table if rows else Markup()) + element("div", *more)

    def _cells(self) -> tuple[list[str], list[list[str]], list[str]]:
        """The header, the rows to show, and a line that counts the other rows."""
        all_rows = self.to_rows()
        chosen = list(islice(all_rows, MOST_SHOWN))
        columns = self.shown or dict.fromkeys(name for row in chosen for name in row)
        names = [name for name in columns if any(row.get(name) is not None for row in chosen)]
        rows = [[_cell(row.get(name)) for name in names] for row in chosen]
        hidden = len(all_rows) - len(chosen)
        return [name.replace("_", " ") for name in names], rows, [f"… {hidden} more"] * (hidden > 0)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The lines of a plain table: the first `left` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    sides = [str.ljust if index < left else str.rjust for index in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        cells = zip(sides, row, widths, strict=True)
        return "  ".join(side(cell, width) for side, cell, width in cells).rstrip()

    return [line(row) for row in (header, *rows)]


def _cell(value: object) -> str:
    match value:
        case None | False:
            return ""
        case True:
            return "✓"
        case float():
            if math.isnan(value):
                return ""
            return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return excerpt(" ".join(str(value).split()), _LONGEST)


# Characters that no HTML or XML document may contain, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(name: str, *children: str) -> Markup:
    """The element `name`; children that are not Markup are escaped."""
    content = Markup("").join(escape(clean(child)) for child in children)
    return Markup("<{0}>{1}</{0}>").format(name, content)


def clean(text: str) -> str:
    """The text with � for characters that XML forbids: control characters, lone surrogates."""
    if isinstance(text, Markup):
        return text
    return _FORBIDDEN.sub("\ufffd", text)
