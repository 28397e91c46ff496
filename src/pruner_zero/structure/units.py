"""Patterns that remove whole units of every block: a mask until the model is saved."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import size_of
from pruner_zero.sparsity.pattern import Reach
from pruner_zero.sparsity.selection import keep_highest
from pruner_zero.sparsity.threshold import comparable
from pruner_zero.structure.couplings import Coupling, find_couplings, is_loadable
from pruner_zero.structure.cut import (
    check_shrunk,
    shrink,
    shrink_files,
    shrunk,
    size_without_units,
)
from pruner_zero.structure.removal import Removal, units_left

# Rows whose squares are added up at a time, so that their doubles stay in the processor's cache.
_ROWS = 32
_WORDS: Mapping[str, str] = {"channels": "MLP channels", "heads": "key-value heads"}


@dataclass(frozen=True)
class Structured(Removal):
    """The units with the lowest totals are removed, equally many in every block.

    A unit's total is the sum of the squared scores of its columns of the consumer, with the sign of
    the score: for Wanda the sum of W²·X² over all outputs, what it contributes to them. sparsity:
    the share of units to remove. multiple: the number of channels that stay is a multiple of it.
    parameters: in place of a share of units, the largest number of parameters of the smaller model,
    or up to 1 their share. couplings: of the model, found by `of_model`. kept: the number of units
    that stay in each, found by `of_model`.
    Source: the total is that of Wanda-sp in FLAP (An et al. 2024, 2312.11983), squared before it is
    summed.
    """

    sparsity: float
    structure: Structure = "channels"
    multiple: int = 32
    parameters: float | None = None
    couplings: tuple[Coupling, ...] = ()
    kept: int = 0

    @property
    def reach(self) -> Reach:
        return "block"

    @classmethod
    def of(cls, sparsity: float, parameters: float | None, **options: Any) -> Self:
        return cls(sparsity, options["structure"], options["multiple_of"], parameters)

    @property
    def unit(self) -> str:
        return self.structure

    @property
    def unit_step(self) -> str:
        return "exact"

    def fit(self, model: PreTrainedModel) -> Self:
        couplings = tuple(find_couplings(model, self.structure))
        count = couplings[0].count
        step = self.multiple if self.structure == "channels" else 1
        rest = size_without_units(model, couplings, 0)[0]
        unit = (size_of(model)[0] - rest) // count
        kept = units_left(
            model,
            self,
            count,
            range(step, count, step),
            lambda kept: rest + unit * kept,
            _WORDS[self.structure],
            lambda kept: is_loadable(model.config, self.structure, kept),
        )
        check_shrunk(model, couplings, self.structure, kept)
        return replace(self, sparsity=1 - kept / count, couplings=couplings, kept=kept)

    @property
    def consumers(self) -> list[str]:
        """The matrices that lose columns, by which units are compared."""
        return [coupling.consumer for coupling in self.couplings]

    @property
    def include(self) -> list[str]:
        """The matrices that lose rows or columns."""
        return [name for c in self.couplings for name in (*c.producers, c.consumer)]

    def has_whole_rows(self, name: str) -> bool:
        return name not in self.consumers

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for coupling in self.couplings:
            inside = [name for name in (*coupling.producers, coupling.consumer) if name in scores]
            if not inside:
                continue
            if coupling.consumer not in inside:
                raise PrunerZeroError(
                    f"calibration left statistics of {coupling.consumer} zero, or of a matrix that "
                    "computes its inputs, so that no unit of its block can be chosen: give more "
                    "text, or another metric"
                )
            totals = _totals(scores[coupling.consumer], coupling)
            units = keep_highest(totals[None], coupling.count - self.kept)[0]
            for name in inside:
                axis = int(name == coupling.consumer)
                shape = scores[name].shape
                along = units.to(scores[name].device)
                along = along.repeat_interleave(shape[axis] // coupling.count)
                masks[name] = (along if axis else along[:, None]).expand(shape)
        return masks

    def size(self, model: PreTrainedModel) -> tuple[int, int]:
        return size_without_units(model, self.couplings, self.kept)

    def shrink_files(
        self, model: PreTrainedModel, files: list[Path]
    ) -> tuple[PreTrainedConfig, list[Path]]:
        return shrink_files(model, files, self.couplings, self.structure, self.kept)

    def shrink(self, model: PreTrainedModel) -> None:
        shrink(model, self.couplings, self.structure, self.kept)

    def shrunk(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        return shrunk(model, self.couplings, self.structure, self.kept)

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the {_WORDS[self.structure]} of every block"


def signed_squares(scores: Tensor, name: str) -> Iterator[Tensor]:
    """The squares of scores (out, in) with the sign of the score, fp64, in blocks of rows.

    They are on the CPU where the device of the scores has no float64. Raises PrunerZeroError,
    naming the matrix `name`, for scores that are not finite.
    """
    compared = where_float64_is(comparable(scores, name))
    parts = (part.double() for part in compared.split(_ROWS))
    return (part * part.abs() for part in parts)


def _totals(scores: Tensor, coupling: Coupling) -> Tensor:
    """The signed sums of squares over the columns of each unit in the consumer, fp64."""
    sums = [part.sum(0) for part in signed_squares(scores, coupling.consumer)]
    return torch.stack(sums).sum(0).view(coupling.count, -1).sum(1)
