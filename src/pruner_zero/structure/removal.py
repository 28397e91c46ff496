"""The number of units that stay, and slices of tensors without the others."""

from collections.abc import Mapping
from contextlib import suppress

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import causal_class, has_code
from pruner_zero.models.matrices import size_of
from pruner_zero.models.quiet import quiet
from pruner_zero.structure.cut import Cut

# What transformers raises for a configuration that it refuses, or that lacks a field.
REFUSALS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, StrictDataclassError)


def take_units(tensor: Tensor, places: Tensor, count: int, axis: int) -> Tensor:
    """The slices at `places` of the `count` equal ones of `tensor` along `axis`."""
    slices = tensor.unflatten(axis, (count, -1))
    kept: Tensor = slices.index_select(axis, places).flatten(axis, axis + 1).contiguous()
    return kept


def without_weights(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel | None:
    """A model of the class of `model` that `config` describes, on "meta"; None where none is."""
    with suppress(*REFUSALS), torch.device("meta"), quiet():
        built: PreTrainedModel = (causal_class(config) if has_code(config) else type(model))(
            type(config).from_dict(config.to_dict())
        )
        return built
    return None


def units_left(
    model: PreTrainedModel,
    asked: Cut,
    count: int,
    sizes: Mapping[int, int],
    words: str,
    step: int = 1,
) -> int:
    """How many of `count` units stay under the cut `asked`, by its share or its parameters.

    sizes: the numbers of units that may stay, multiples of `step`, with the parameters of the model
    then. words: the name of the units. Raises PrunerZeroError naming the nearest possible number
    where the number asked for is not possible.
    """
    if not sizes:
        multiple = f", of which a multiple of {step} stays" * (step > 1)
        raise PrunerZeroError(f"none of the {count} {words} can go{multiple}")
    if asked.parameters:
        reachable = min(sizes.values()), max(sizes.values())
        most = most_parameters(model, asked.parameters, reachable, words)
        return max(kept for kept, size in sizes.items() if size <= most)
    wanted = count * (1 - asked.sparsity)
    kept = min(sizes, key=lambda n: abs(n - wanted))
    # Keeping all is no answer, but may be nearer.
    if abs(kept - wanted) > min(step / 2, count - wanted):
        raise PrunerZeroError(
            f"--sparsity {asked.sparsity:g} of the {count} {words} of a block leaves {wanted:g}, "
            "and a block cannot have that number: "
            f"choose --sparsity {1 - kept / count:.4g}, which leaves {kept}"
        )
    return kept


def most_parameters(
    model: PreTrainedModel, asked: float, reachable: tuple[int, int], words: str
) -> int:
    """The largest size of the smaller model: `asked`, up to 1 a share of `model`'s parameters.

    reachable: the fewest and the most that can be left without some of its `words`. Raises
    PrunerZeroError naming the nearest where `asked` is fewer, or leaves nothing to remove.
    """
    dense = size_of(model)[0]
    most = int(asked if asked > 1 else asked * dense)
    if reachable[0] <= most < dense:
        return most
    nearest = reachable[most >= dense]
    raise PrunerZeroError(
        f"--parameters {most:,} of {dense:,} cannot be reached by removing {words}: choose "
        f"--parameters {nearest}, the nearest that can"
    )
