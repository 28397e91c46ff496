"""Tables: drawn on a terminal, aligned plain text elsewhere."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Print `rows` to stdout; the first `left` columns are aligned left, the others right.

    Where stdout is not a terminal, nothing is wrapped or cut.
    """
    if sys.stdout.isatty():
        table = Table()
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < left else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console(markup=False).print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
