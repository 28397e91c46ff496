"""Offsets of allocations, drawn and moved: a number a block and a number a kind of matrix."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from pruner_zero.evolution.layout import Layout
from pruner_zero.settings import Settings

Genes = NDArray[np.float64]
Offsets = tuple[float, ...]

# Finer differences between offsets, in logits, are none.
_DECIMALS = 4


class OffsetSettings(Settings):
    """spread, step: the standard deviation, in logits, of first offsets, and the range of changes.

    Changes are drawn log-uniformly from the range, so that coarse and fine ones are always tried.
    """

    spread: float = Field(0.4, gt=0)
    step: tuple[float, float] = (0.03, 0.5)


class OffsetVariation:
    """Draws and moves the offsets that `layout` reads. Source: ours."""

    def __init__(self, layout: Layout, settings: OffsetSettings) -> None:
        self.depth, self.settings = layout.depth, settings
        self.count = layout.depth + len(layout.kind_names)

    @property
    def none(self) -> Offsets:
        """Those that move nothing."""
        return (0.0,) * self.count

    def random(self, generator: Generator) -> Offsets:
        """Smooth over the depth, with noise."""
        spread = self.settings.spread
        genes = generator.normal(0, spread, self.count)
        genes[: self.depth] *= 0.3
        genes[: self.depth] += self._curve(generator, spread)
        return self._centred(genes)

    def crossover(self, generator: Generator, mother: Offsets, father: Offsets) -> Offsets:
        """A point on the line through both, between them or a little beyond."""
        first, second = np.array(mother), np.array(father)
        return self._centred(first + generator.uniform(-0.5, 1.5) * (second - first))

    def mutate(self, generator: Generator, offsets: Sequence[float]) -> tuple[str, Offsets]:
        """Some moved, all blocks moved smoothly, or all stretched; and what was done, in a word."""
        genes = np.array(offsets)
        low, high = np.log(self.settings.step)
        step = float(np.exp(generator.uniform(low, high)))
        # Nothing is not stretched into anything.
        chances = (0.6, 0.25, 0.15) if genes.any() else (0.7, 0.3, 0.0)
        operation = ("nudge", "curve", "stretch")[generator.choice(3, p=chances)]
        if operation == "nudge":
            moved = generator.random(self.count) < generator.choice((0.05, 0.2, 1.0))
            moved[generator.integers(self.count)] = True
            genes[moved] += generator.normal(0, step, int(moved.sum()))
        elif operation == "curve":
            genes[: self.depth] += self._curve(generator, step)
        else:
            genes *= np.exp(generator.normal(0, step))
        return operation, self._centred(genes)

    def _curve(self, generator: Generator, step: float) -> Genes:
        """A slope and a bow over the depth of the model, of random height."""
        place = np.linspace(-1, 1, self.depth)
        slope, bow = generator.normal(0, step, 2)
        curve: Genes = slope * place + bow * (1.5 * place**2 - 0.5)
        return curve

    def _centred(self, genes: Genes) -> Offsets:
        """Rounded; a constant added to all blocks or all kinds changes no share and is left out."""
        blocks, kinds = genes[: self.depth], genes[self.depth :]
        centred = np.concatenate([blocks - blocks.mean(), kinds - kinds.mean()])
        # Adding 0 makes −0.0 plain.
        return tuple((centred.round(_DECIMALS) + 0.0).tolist())
