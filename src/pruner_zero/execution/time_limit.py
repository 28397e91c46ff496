"""A time limit that work in the main process checks by itself, since nothing can stop it there."""

import math
import time
from dataclasses import dataclass, field

from pruner_zero.errors import PrunerZeroError


@dataclass(frozen=True)
class TimeLimit:
    """Ends work between two of its steps once `seconds` are over; a step is never cut short."""

    seconds: float = math.inf
    since: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise PrunerZeroError after the limit."""
        if time.monotonic() - self.since >= self.seconds:
            raise PrunerZeroError(over_time(self.seconds))


def over_time(seconds: float) -> str:
    """The reason with which a task over the limit is rejected."""
    return f"took longer than the time limit of {seconds:g} s"


UNLIMITED = TimeLimit()
