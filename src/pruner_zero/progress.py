"""How long-running code reports progress, without knowledge of terminals."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Receives the progress and the notes of long-running code; this base class ignores them.

    The command line passes one that draws bars or prints lines.
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
_RECEIVER: ContextVar[Progress] = ContextVar("progress", default=SILENT)


@contextmanager
def reported_to(progress: Progress) -> Iterator[None]:
    """Within the context, `track` and `note` reach `progress`."""
    token = _RECEIVER.set(progress)
    try:
        yield
    finally:
        _RECEIVER.reset(token)


def receiver() -> Progress:
    """The receiver of this context, `SILENT` where there is none."""
    return _RECEIVER.get()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """`Progress.track` of the receiver."""
    return receiver().track(items, label, total)


def note(line: str) -> None:
    """`Progress.note` of the receiver."""
    receiver().note(line)
