"""From a model with masked units to the smaller model that computes the same outputs."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import block_list, find_blocks, set_tensor
from pruner_zero.models.units import REFUSALS, Coupling, set_counts


def size_of(module: nn.Module) -> tuple[int, int]:
    """The number of a module's parameters and their bytes; tied parameters count once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def size_left(
    model: PreTrainedModel, names: Iterable[str], count: int, kept: int
) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` of `count` slices of the tensors are cut out.

    names: of the tensors, of which only parameters are counted.
    """
    numbers, nbytes = size_of(model)
    parameters = dict(model.named_parameters())
    for parameter in (parameters[name] for name in names if name in parameters):
        cut = parameter.numel() // count * (count - kept)
        numbers, nbytes = numbers - cut, nbytes - cut * parameter.itemsize
    return numbers, nbytes


def size_without_units(
    model: PreTrainedModel, couplings: Sequence[Coupling], kept: int
) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` units of each coupling are cut out."""
    names = (name for coupling in couplings for name, _, _ in coupling.tensors(model))
    return size_left(model, names, couplings[0].count, kept)


@torch.no_grad()
def shrink(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Cut, in place, all but `kept` units of each coupling out, and update the configuration.

    The units that are cut are those whose columns of the consumer are zero throughout, so that no
    output changes. Raises ValueError where fewer than that are zero.
    """
    for coupling in couplings:
        weight = model.get_parameter(f"{coupling.consumer}.weight")
        places = kept_units(weight, coupling, kept)
        for name, parameter, axis in coupling.tensors(model):
            left = take_units(parameter.data, places, coupling.count, axis)
            _set(model, name, nn.Parameter(left, parameter.requires_grad))
    set_counts(model.config, structure, kept)


@contextmanager
def shrunk(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> Iterator[None]:
    """Within the context, `model` is the smaller model, as after `shrink`.

    The tensors from before are held too.
    """
    config = dict(vars(model.config))
    before = [
        (name, parameter)
        for coupling in couplings
        for name, parameter, _ in coupling.tensors(model)
    ]
    try:
        shrink(model, couplings, structure, kept)
        yield
    finally:
        for name, parameter in before:
            _set(model, name, parameter)
        vars(model.config).clear()
        vars(model.config).update(config)


def _set(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    """Set a parameter of a linear map, and the sizes of the map."""
    set_tensor(model, name, parameter)
    if parameter.ndim == 2:
        linear = model.get_submodule(name.rpartition(".")[0])
        linear.out_features, linear.in_features = parameter.shape


def kept_units(weight: Tensor, coupling: Coupling, kept: int) -> Tensor:
    """The units that stay, sorted: all non-zero units, filled up with the first zero units.

    weight: the consumer's, (out, in). Raises ValueError where more than `kept` are not zero.
    """
    alive = weight.unflatten(1, (coupling.count, -1)).ne(0).any(2).any(0)
    if int(alive.sum()) > kept:
        raise ValueError(f"{coupling.consumer} has {int(alive.sum())} units, not {kept}")
    places: Tensor = alive.int().argsort(descending=True, stable=True)[:kept].sort()[0]
    return places


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
        for name, parameter, axis in coupling.tensors(model):
            expected[name][axis] = parameter.shape[axis] // coupling.count * kept
    config = deepcopy(model.config)
    set_counts(config, structure, kept)
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
        # Token ids are a list too where several end a text.
        if isinstance(value, list) and len(value) == count and not field.endswith("token_id"):
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
