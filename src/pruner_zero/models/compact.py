"""From a model whose units are masked to the smaller model that computes the same."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.models.units import Coupling, counts_left


@torch.no_grad()
def shrink(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Cut, in place, all but `kept` units of each coupling out of `model`, and tell its config.

    The units that are cut are those whose columns of the consumer are zero throughout, so that no
    output changes. Raises ValueError where fewer than that are zero.
    """
    for coupling in couplings:
        consumer = model.get_submodule(coupling.consumer)
        places = _places(consumer.get_parameter("weight"), coupling, kept)
        _cut(consumer, places, coupling.count, 1)
        for name in coupling.producers:
            _cut(model.get_submodule(name), places, coupling.count, 0)
    for field, count in counts_left(model.config, structure, kept).items():
        setattr(model.config, field, count)


def _places(weight: Tensor, coupling: Coupling, kept: int) -> Tensor:
    """The units that stay, in order: those that are not zero, and the first of those that are."""
    alive = weight.unflatten(1, (coupling.count, -1)).ne(0).any(2).any(0)
    if int(alive.sum()) > kept:
        raise ValueError(f"{coupling.consumer} has {int(alive.sum())} units, not {kept}")
    places: Tensor = alive.int().argsort(descending=True, stable=True)[:kept].sort()[0]
    return places


def _cut(linear: nn.Module, places: Tensor, count: int, axis: int) -> None:
    """Keep of a linear map the slices at `places` of `count` equal ones; axis 0 is its outputs."""
    for name, parameter in list(linear.named_parameters()):
        # Columns have no part in the bias.
        if parameter.ndim > axis:
            slices = parameter.data.unflatten(axis, (count, -1))
            kept = slices.index_select(axis, places).flatten(axis, axis + 1).contiguous()
            setattr(linear, name, nn.Parameter(kept, parameter.requires_grad))
    field = "in_features" if axis else "out_features"
    setattr(linear, field, getattr(linear, field) // count * len(places))
