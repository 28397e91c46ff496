"""The budget of a training run, and the learning rate along it."""

import math
from dataclasses import dataclass

from pruner_zero.settings.recover import Schedule

# The warmup begins at this share of the rate: a first step with rate 0 would do nothing.
FIRST_RATE = 0.1


@dataclass(frozen=True)
class Budget:
    """A number of steps, of seconds, or both; None is no limit."""

    steps: int | None
    seconds: float | None

    def share(self, step: float, seconds: float) -> float:
        """The share of the budget spent after `step` steps and `seconds` seconds, in [0, 1]."""
        of_steps = step / self.steps if self.steps else 0.0
        of_seconds = seconds / self.seconds if self.seconds else 0.0
        return min(max(of_steps, of_seconds), 1.0)


def rate(share: float, warmup: float, schedule: Schedule) -> float:
    """The learning rate as a share of the highest, when `share` of the budget is spent.

    Linear up to 1 at `warmup`, then along half a cosine or a line to 0 at the end.
    """
    if share < warmup:
        return FIRST_RATE + (1 - FIRST_RATE) * share / warmup
    left = (1 - share) / (1 - warmup)
    return left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
