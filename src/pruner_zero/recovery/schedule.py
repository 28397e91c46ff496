"""The budget of a training run, and the learning rate along it."""

import math
from dataclasses import dataclass

# The share of the budget in which the rate rises. It begins at a tenth of the highest rate, since
# a first step with rate 0 would do nothing.
WARMUP = 0.05
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


def rate(share: float) -> float:
    """The learning rate as a share of the highest, when `share` of the budget is spent.

    Linear up to 1 at `WARMUP`, then along half a cosine to 0 at the end.
    """
    if share < WARMUP:
        return FIRST_RATE + (1 - FIRST_RATE) * share / WARMUP
    return (1 - math.cos(math.pi * (1 - share) / (1 - WARMUP))) / 2
