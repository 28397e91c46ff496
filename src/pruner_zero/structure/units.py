"""Channels and heads: units of every block, which are masked until the model is saved."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.devices import where_float64_is
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import COUNTS, block_sizes, set_block_sizes
from pruner_zero.models.couplings import Coupling, find_couplings
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.sparsity.least_squares import COLUMNS
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import keep_highest
from pruner_zero.sparsity.threshold import comparable
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.removal import (
    REFUSALS,
    take_units,
    units_left,
    without_weights,
)
from pruner_zero.tensor_file import TensorFile, write_tensors

# Rows whose squares are added up at a time, so that their doubles stay in the processor's cache.
_ROWS = 32
WORDS: Mapping[str, str] = {"channels": "MLP channels", "heads": "key-value heads"}


@dataclass(frozen=True)
class UnitMask(Pattern):
    """The masks of the units with the lowest totals; `kept` of each of the `couplings` stay.

    A unit's total is the sum of the squared scores of its columns of the consumer, with the sign of
    the score: for Wanda the sum of W²·X² over all outputs, what it contributes to them.
    Source: the total is that of Wanda-sp in FLAP (An et al. 2024, 2312.11983), squared before it is
    summed.
    """

    sparsity: float
    couplings: tuple[Coupling, ...]
    kept: tuple[int, ...]

    reach = "block"

    @property
    def consumers(self) -> list[str]:
        """The matrices that lose columns, by which units are compared."""
        return [coupling.consumer for coupling in self.couplings]

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            inside = [name for name in (*coupling.producers, coupling.consumer) if name in scores]
            if not inside:
                continue
            if coupling.consumer not in inside:
                raise PrunerZeroError(
                    f"calibration left statistics of {coupling.consumer} zero, or of a matrix that "
                    "computes its inputs, so that no unit of its block can be chosen: give more "
                    "text, or another metric"
                )
            totals = totals_of(scores[coupling.consumer], coupling)
            units = keep_highest(totals[None], coupling.count - kept)[0]
            for name in inside:
                axis = int(name == coupling.consumer)
                shape = scores[name].shape
                along = units.to(scores[name].device)
                along = along.repeat_interleave(shape[axis] // coupling.count)
                masks[name] = (along if axis else along[:, None]).expand(shape)
        return masks


@dataclass(frozen=True)
class CoupledUnits(Cut):
    """Units of `couplings`, of which those with the lowest totals go and `kept` of each stay."""

    sparsity: float
    unit: str = "channels"
    multiple: int = 32
    parameters: float | None = None
    couplings: tuple[Coupling, ...] = field(default=(), repr=False)
    kept: tuple[int, ...] = field(default=(), repr=False)

    when = "masks"
    update = COLUMNS

    @property
    def pattern(self) -> UnitMask:
        return UnitMask(self.sparsity, self.couplings, self.kept)

    @property
    def include(self) -> list[str]:
        """The matrices that lose rows or columns."""
        return [name for c in self.couplings for name in (*c.producers, c.consumer)]

    def lost(self, model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            for _, parameter, _ in coupling.tensors(model):
                yield parameter, parameter.numel() // coupling.count * (coupling.count - kept)

    @torch.no_grad()
    def cut(self, model: PreTrainedModel) -> None:
        """Cut out, in place, the units whose columns of the consumer are zero throughout.

        No output changes. Raises ValueError where fewer are zero than have to go.
        """
        sizes = self._sizes(model.config)
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            places = _places(model.get_parameter(f"{coupling.consumer}.weight"), coupling, kept)
            for name, parameter, axis in coupling.tensors(model):
                left = take_units(parameter.data, places, coupling.count, axis)
                # The parameter object stays, so that no reference to it keeps the old weights.
                parameter.data, parameter.grad = left, None
                if left.ndim == 2:
                    linear = model.get_submodule(name.rpartition(".")[0])
                    linear.out_features, linear.in_features = left.shape
            owner = model.get_submodule(coupling.consumer.rpartition(".")[0])
            for name in COUNTS[coupling.structure]:
                if name in vars(owner):
                    setattr(owner, name, sizes[coupling.block][name])
        set_block_sizes(model.config, sizes)

    def cut_files(
        self, model: PreTrainedModel, files: list[Path]
    ) -> tuple[PreTrainedConfig, list[Path]]:
        """As for `Cut`; each file is read, cut, and written beside itself.

        Raises PrunerZeroError where a block is saved under other names than its matrices have.
        """
        smaller = list(files)
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            path = smaller[coupling.block]
            smaller[coupling.block] = path.with_name(f"smaller-{path.name}")
            tensors = _cut_file(path, model, coupling, kept)
            write_tensors(smaller[coupling.block], tensors, {"format": "pt"})
        return self.smaller_config(model), smaller

    def smaller_config(self, model: PreTrainedModel) -> PreTrainedConfig:
        """The configuration of the smaller model."""
        config = deepcopy(model.config)
        set_block_sizes(config, self._sizes(config))
        return config

    def described(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """The smaller model without its weights; None where transformers refuses to build it."""
        with suppress(*REFUSALS):
            return without_weights(model, self.smaller_config(model))
        return None

    def check_described(self, model: PreTrainedModel) -> None:
        """Raise PrunerZeroError where the configuration cannot describe what `cut` leaves."""
        expected = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            for name, parameter, axis in coupling.tensors(model):
                expected[name][axis] = parameter.shape[axis] // coupling.count * kept
        smaller = self.described(model)
        tensors = smaller.named_parameters() if smaller else ()
        if {name: list(tensor.shape) for name, tensor in tensors} != expected:
            raise PrunerZeroError(
                f"--structure {self.unit} cannot remove any of the {model.config.model_type} "
                "family, whose configuration cannot describe the smaller model: choose another "
                "size, or leave out --structure"
            )

    def _sizes(self, config: PreTrainedConfig) -> list[dict[str, int]]:
        """The sizes of each block of the smaller model."""
        sizes = block_sizes(config)
        for coupling, kept in zip(self.couplings, self.kept, strict=True):
            of_block = sizes[coupling.block]
            for name in COUNTS[coupling.structure]:
                of_block[name] = of_block[name] * kept // coupling.count
        return sizes


@dataclass(frozen=True)
class EqualWidths(CoupledUnits):
    """Channels or heads, equally many of every block, so that the family stays the same.

    multiple: the number of channels that stay is a multiple of it.
    """

    unit: Structure = "channels"

    def fit(self, language_model: LanguageModel) -> Self:
        model = language_model.model
        couplings = tuple(find_couplings(model, self.unit))
        count = couplings[0].count
        step = self.multiple if self.unit == "channels" else 1
        # Some families refuse some numbers of heads.
        sizes = {
            kept: smaller.size(model)[0]
            for kept in range(step, count, step)
            for smaller in [self._keeping(couplings, kept)]
            if self.unit == "channels" or smaller.described(model)
        }
        kept = units_left(model, self, count, sizes, WORDS[self.unit], step)
        fitted = self._keeping(couplings, kept)
        fitted.check_described(model)
        return fitted

    def _keeping(self, couplings: tuple[Coupling, ...], kept: int) -> Self:
        """The cut by which `kept` units of each of the `couplings` stay."""
        share, all_kept = 1 - kept / couplings[0].count, (kept,) * len(couplings)
        return replace(self, sparsity=share, couplings=couplings, kept=all_kept)

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the {WORDS[self.unit]} of every block"


def _cut_file(
    path: Path, model: PreTrainedModel, coupling: Coupling, kept: int
) -> dict[str, Tensor]:
    """The tensors of a block in the file `path`, without the removed units."""
    file, axes = TensorFile(path), {name: axis for name, _, axis in coupling.tensors(model)}
    tensors = {name: file.read(name) for name in file}
    if missing := sorted(axes.keys() - tensors.keys()):
        raise PrunerZeroError(
            f"{missing[0]} is saved under another name, so that units cannot be removed on "
            "disk: leave out --offload"
        )
    places = _places(tensors[f"{coupling.consumer}.weight"], coupling, kept)
    for name, axis in axes.items():
        tensors[name] = take_units(tensors[name], places, coupling.count, axis)
    return tensors


def _places(weight: Tensor, coupling: Coupling, kept: int) -> Tensor:
    """The `kept` units that stay, sorted: all non-zero ones, filled up with the first zero ones.

    weight: the consumer's, (out, in).
    """
    alive = weight.unflatten(1, (coupling.count, -1)).ne(0).any(2).any(0)
    if int(alive.sum()) > kept:
        raise ValueError(f"{coupling.consumer} has {int(alive.sum())} units, not {kept}")
    places: Tensor = alive.int().argsort(descending=True, stable=True)[:kept].sort()[0]
    return places


def signed_squares(scores: Tensor, name: str) -> Iterator[Tensor]:
    """The squares of scores (out, in) with the sign of the score, fp64, in blocks of rows.

    They are on the CPU where the device of the scores has no float64. Raises PrunerZeroError,
    naming the matrix `name`, for scores that are not finite.
    """
    compared = where_float64_is(comparable(scores, name))
    parts = (part.double() for part in compared.split(_ROWS))
    return (part * part.abs() for part in parts)


def totals_of(scores: Tensor, coupling: Coupling) -> Tensor:
    """The signed sums of squares over the columns of each unit in the consumer, fp64."""
    sums = [part.sum(0) for part in signed_squares(scores, coupling.consumer)]
    return torch.stack(sums).sum(0).view(coupling.count, -1).sum(1)
