"""Removing experts of a mixture, for good or within a context."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.models.compact import size_left, take_units
from pruner_zero.models.mixtures import Mixtures, tensors_of
from pruner_zero.models.structure import set_tensor


def size_with_experts(model: PreTrainedModel, mixtures: Mixtures, kept: int) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` experts of each block are removed."""
    names = (name for mixture in mixtures.blocks for name in mixture.tensors)
    return size_left(model, names, mixtures.count, kept)


def keep_experts(
    model: PreTrainedModel, mixtures: Mixtures, kept: Mapping[int, Sequence[int]]
) -> None:
    """Remove, in place, all experts except `kept` of each block; update the configuration.

    kept: the numbers of the kept experts by block number, equally many for every block, in their
    new order.
    """
    before, tensors = tensors_of(model), {}
    for mixture in mixtures.blocks:
        for name, axis in mixture.tensors.items():
            tensor = before[name].detach()
            places = torch.tensor(kept[mixture.block], device=tensor.device)
            tensors[name] = take_units(tensor, places, mixtures.count, axis)
    _put(model, mixtures, tensors, len(kept[mixtures.blocks[0].block]))


@contextmanager
def experts_kept(
    model: PreTrainedModel, mixtures: Mixtures, kept: Mapping[int, Sequence[int]]
) -> Iterator[None]:
    """Within the context, `model` has only the experts `kept`, as after `keep_experts`."""
    tensors = tensors_of(model)
    before = {name: tensors[name] for mixture in mixtures.blocks for name in mixture.tensors}
    try:
        keep_experts(model, mixtures, kept)
        yield
    finally:
        _put(model, mixtures, before, mixtures.count)


def _put(
    model: PreTrainedModel, mixtures: Mixtures, tensors: Mapping[str, Tensor], count: int
) -> None:
    """Set `tensors` of `count` experts per block in the model, and set its counts of experts."""
    before = tensors_of(model)
    for name, tensor in tensors.items():
        if isinstance(before[name], nn.Parameter) and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, before[name].requires_grad)
        set_tensor(model, name, tensor)
    for owner, attribute in mixtures.attributes:
        setattr(model.get_submodule(owner), attribute, count)
    setattr(model.config, mixtures.field, count)
