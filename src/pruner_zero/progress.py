"""How long steps tell that they go on, without knowing about terminals."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Receives the steps of long work and its remarks; this base class keeps silent.

    Library code calls it; the command line passes one that draws bars or prints lines.
    """

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` one by one, counting them under `label`."""
        del label, total
        yield from items

    def note(self, line: str) -> None:
        """A remark worth a line, such as a fallback that was taken."""
        del line


SILENT = Progress()
