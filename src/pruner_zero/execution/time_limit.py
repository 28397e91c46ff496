"""A time limit that work in the main process checks by itself, since nothing can stop it there."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from pruner_zero.errors import PrunerZeroError

T = TypeVar("T")


@dataclass(frozen=True)
class TimeLimit:
    """Ends work between two of its steps once `seconds` are over; a step is never cut short."""

    seconds: float = math.inf
    since: float = field(default_factory=time.monotonic)

    def steps(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items. Raises PrunerZeroError before an item that begins after the limit."""
        for item in items:
            self.check()
            yield item

    def check(self) -> None:
        """Raise PrunerZeroError after the limit."""
        if time.monotonic() - self.since >= self.seconds:
            raise PrunerZeroError(over_time(self.seconds))


def over_time(seconds: float) -> str:
    """The reason with which a task over the limit is rejected."""
    return f"took longer than the time limit of {seconds:g} s"


UNLIMITED = TimeLimit()
