"""Removing experts of a mixture, for good or within a context."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.models.compact import size_of
from pruner_zero.models.mixtures import Mixtures, tensors_of


def size_with_experts(model: PreTrainedModel, mixtures: Mixtures, kept: int) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` experts of each block are removed."""
    numbers, nbytes = size_of(model)
    parameters = dict(model.named_parameters())
    for name in (name for mixture in mixtures.blocks for name in mixture.tensors):
        if name in parameters:
            cut = parameters[name].numel() // mixtures.count * (mixtures.count - kept)
            numbers, nbytes = numbers - cut, nbytes - cut * parameters[name].itemsize
    return numbers, nbytes


def keep_experts(
    model: PreTrainedModel, mixtures: Mixtures, kept: Mapping[int, Sequence[int]]
) -> None:
    """Remove, in place, all experts except `kept` of each block; update the configuration.

    kept: the numbers of the kept experts by block number, equally many for every block, in their
    new order.
    """
    before = tensors_of(model)
    tensors = {
        name: _take(before[name], kept[mixture.block], axis)
        for mixture in mixtures.blocks
        for name, axis in mixture.tensors.items()
    }
    _put(model, mixtures, tensors, len(kept[mixtures.blocks[0].block]))


@contextmanager
def experts_kept(
    model: PreTrainedModel, mixtures: Mixtures, kept: Mapping[int, Sequence[int]]
) -> Iterator[None]:
    """Within the context, `model` has only the experts `kept`, as after `keep_experts`."""
    tensors = tensors_of(model)
    before = {name: tensors[name] for mixture in mixtures.blocks for name in mixture.tensors}
    keep_experts(model, mixtures, kept)
    try:
        yield
    finally:
        _put(model, mixtures, before, mixtures.count)


def _take(tensor: Tensor, places: Sequence[int], axis: int) -> Tensor:
    return tensor.detach().index_select(axis, torch.tensor(places, device=tensor.device))


def _put(
    model: PreTrainedModel, mixtures: Mixtures, tensors: Mapping[str, Tensor], count: int
) -> None:
    """Set `tensors` of `count` experts per block in the model, and set its counts of experts."""
    for name, tensor in tensors.items():
        owner, _, local = name.rpartition(".")
        module = model.get_submodule(owner)
        before = getattr(module, local)
        if isinstance(before, nn.Parameter) and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, before.requires_grad)
        setattr(module, local, tensor)
    for owner, attribute in mixtures.attributes:
        setattr(model.get_submodule(owner), attribute, count)
    setattr(model.config, mixtures.field, count)
