"""How long a candidate may take where nobody beside it could stop it."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from pruner_zero.errors import PrunerZeroError

T = TypeVar("T")


@dataclass(frozen=True)
class TimeLimit:
    """Ends work between two of its steps once its seconds are over; no step is cut in itself."""

    seconds: float = math.inf
    since: float = field(default_factory=time.monotonic)

    def steps(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one for each step. Raises PrunerZeroError before one that comes too late."""
        for item in items:
            if time.monotonic() - self.since >= self.seconds:
                raise PrunerZeroError(over_time(self.seconds))
            yield item


def over_time(seconds: float) -> str:
    """The reason for which a candidate is rejected."""
    return f"took longer than the time limit of {seconds:g} s"


UNLIMITED = TimeLimit()
