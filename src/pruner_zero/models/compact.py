"""From a model with masked units to the smaller model that computes the same outputs."""

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import block_list, find_blocks
from pruner_zero.models.units import REFUSALS, Coupling, counts_left


def size_of(module: nn.Module) -> tuple[int, int]:
    """The number of a module's parameters and their bytes; tied parameters count once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def size_without_units(
    model: PreTrainedModel, couplings: Sequence[Coupling], kept: int
) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` units of each coupling are cut out."""
    numbers, nbytes = size_of(model)
    for coupling in couplings:
        consumer = model.get_submodule(coupling.consumer).get_parameter("weight")
        producers = (model.get_submodule(name).parameters() for name in coupling.producers)
        for parameter in (consumer, *chain.from_iterable(producers)):
            cut = parameter.numel() // coupling.count * (coupling.count - kept)
            numbers, nbytes = numbers - cut, nbytes - cut * parameter.itemsize
    return numbers, nbytes


@torch.no_grad()
def shrink(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Cut, in place, all but `kept` units of each coupling out, and update the configuration.

    The units that are cut are those whose columns of the consumer are zero throughout, so that no
    output changes. Raises ValueError where fewer than that are zero.
    """
    for coupling in couplings:
        consumer = model.get_submodule(coupling.consumer)
        places = kept_units(consumer.get_parameter("weight"), coupling, kept)
        _cut(consumer, places, coupling.count, 1)
        for name in coupling.producers:
            _cut(model.get_submodule(name), places, coupling.count, 0)
    for field, count in counts_left(model.config, structure, kept).items():
        setattr(model.config, field, count)


def kept_units(weight: Tensor, coupling: Coupling, kept: int) -> Tensor:
    """The units that stay, sorted: all non-zero units, filled up with the first zero units.

    weight: the consumer's, (out, in). Raises ValueError where more than `kept` are not zero.
    """
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
            kept = take_units(parameter.data, places, count, axis)
            setattr(linear, name, nn.Parameter(kept, parameter.requires_grad))
    field = "in_features" if axis else "out_features"
    setattr(linear, field, getattr(linear, field) // count * len(places))


def take_units(tensor: Tensor, places: Tensor, count: int, axis: int) -> Tensor:
    """The slices at `places` of the `count` equal ones of `tensor` along `axis`."""
    slices = tensor.unflatten(axis, (count, -1))
    kept: Tensor = slices.index_select(axis, places).flatten(axis, axis + 1).contiguous()
    return kept


def drop_blocks(model: PreTrainedModel, dropped: Collection[int]) -> None:
    """Remove the blocks of these numbers from `model`, in place, and update its configuration.

    Lists by block in the configuration keep the entries of the blocks that stay. These blocks are
    renumbered, as the cache of keys and values needs consecutive numbers. Raises what
    `check_dropped` raises.
    """
    check_dropped(model, dropped)
    blocks = block_list(model)
    _set_blocks(model.config, len(blocks), dropped)
    for index in sorted(dropped, reverse=True):
        del blocks[index]
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 (nn.Module types it as a tensor)


def without_weights(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the class of `model` with the shapes that `config` describes, on "meta".

    Raises what transformers raises for a configuration that it refuses.
    """
    with torch.device("meta"):
        return type(model)(type(config).from_dict(config.to_dict()))


def check_shrunk(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Raise PrunerZeroError where the configuration cannot describe what `shrink` leaves.

    The model that it describes is built without its weights, and their shapes are compared.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    for coupling in couplings:
        for axis, names in enumerate((coupling.producers, (coupling.consumer,))):
            for module in names:
                for name, tensor in model.get_submodule(module).named_parameters(prefix=module):
                    if tensor.ndim > axis:
                        expected[name][axis] = tensor.shape[axis] // coupling.count * kept
    config = deepcopy(model.config)
    for field, count in counts_left(config, structure, kept).items():
        setattr(config, field, count)
    try:
        described = without_weights(model, config).named_parameters()
        fits = {name: list(tensor.shape) for name, tensor in described} == expected
    except REFUSALS:
        fits = False
    if not fits:
        raise PrunerZeroError(
            f"--structure {structure} cannot remove any of the {model.config.model_type} family, "
            "whose configuration cannot describe the smaller model: leave out --structure"
        )


def check_dropped(model: PreTrainedModel, dropped: Collection[int]) -> None:
    """Raise PrunerZeroError where the configuration cannot say which blocks stay.

    The model that it describes is built without its weights, and its blocks are compared with those
    that stay: shapes, classes and all plain attributes, such as a sliding window.
    """
    config, blocks = deepcopy(model.config), find_blocks(model)
    _set_blocks(config, len(blocks), dropped)
    kept = [block for index, block in enumerate(blocks) if index not in dropped]
    try:
        described = find_blocks(without_weights(model, config))
        fits = [list(_kind(block)) for block in kept] == [list(_kind(block)) for block in described]
    except REFUSALS:
        fits = False
    if not fits:
        raise PrunerZeroError(
            f"blocks {', '.join(map(str, sorted(dropped)))} cannot be dropped, since the blocks of "
            f"the {model.config.model_type} family differ and its configuration cannot describe "
            "those that stay: choose --structure channels or heads"
        )


def _set_blocks(config: PreTrainedConfig, count: int, dropped: Collection[int]) -> None:
    """Describe, in place, the blocks that stay of the `count` blocks."""
    for field, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count:
            kept = [entry for index, entry in enumerate(value) if index not in dropped]
            setattr(config, field, kept)
    config.num_hidden_layers = count - len(dropped)


def _kind(block: nn.Module) -> Iterator[tuple[Any, ...]]:
    """The properties of a block that make up its kind, without its number and weights."""
    for name, module in block.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | None)
            and not key.startswith("_")
            and key not in ("layer_idx", "training")
        }
        shapes = [(key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False)]
        yield name, type(module), plain, shapes
