"""How long-running code reports progress, without knowledge of terminals."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Receives the progress and the notes of long-running code; this base class ignores them.

    Library code calls it; the command line passes one that draws bars or prints lines.
    bars: whether it draws bars on stderr, so that another library's bars may be drawn too.
    """

    bars = False

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` one by one, counting them under `label`."""
        del label, total
        yield from items

    def note(self, line: str) -> None:
        """Show one line, such as a remark on a fallback."""
        del line


SILENT = Progress()
