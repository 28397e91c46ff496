"""Tables: drawn on a terminal, aligned plain text elsewhere."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pruner_zero.table import aligned


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
    print("\n".join(aligned(header, rows, left)))
