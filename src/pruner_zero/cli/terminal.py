"""What a terminal shows: tables and bars of progress; elsewhere there are plain lines."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from pruner_zero.progress import Progress, T
from pruner_zero.table import aligned


def progress() -> Progress:
    """Progress on stderr: bars on a terminal, lines elsewhere."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class BarProgress(Progress):
    """A bar for the current step and for each step inside it, with remarks printed above them.

    All bars are one display: before version 14.1 rich refuses a second display inside another.
    """

    bars = True

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._display: Bars | None = None

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Show a bar that disappears at the end of the step."""
        with self._displayed() as bars:
            task = bars.add_task(label, total=_length(items, total))
            try:
                for item in items:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

    @contextmanager
    def _displayed(self) -> Iterator[Bars]:
        """The display of all bars, which the outermost step opens and closes."""
        if self._display:
            yield self._display
            return
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as self._display:
            try:
                yield self._display
            finally:
                self._display = None

    def note(self, line: str) -> None:
        """Print the remark above the bar."""
        self.console.print(line, highlight=False, markup=False)


class LineProgress(Progress):
    """A line at most every ten seconds, and one at the end of a long step, for logs."""

    pause = 10.0

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Print how far a long step is."""
        length = _length(items, total)
        of = f"/{length}" if length is not None else ""
        start = spoken = time.monotonic()
        for count, item in enumerate(items):
            now = time.monotonic()
            if now - spoken >= self.pause:
                spoken = now
                self.note(f"{label}: {count}{of}, {now - start:.0f} s")
            yield item
        if time.monotonic() - start >= self.pause:
            self.note(f"{label}: done, {time.monotonic() - start:.0f} s")

    def note(self, line: str) -> None:
        """Print one line at once."""
        print(line, file=sys.stderr, flush=True)


def _length(items: object, total: int | None) -> int | None:
    return len(items) if total is None and isinstance(items, Sized) else total


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
