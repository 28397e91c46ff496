"""The number of units that stay, and slices of tensors without the others."""

from collections.abc import Callable, Iterable
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
    counts: range,
    size: Callable[[int], int],
    words: str,
    loadable: Callable[[int], bool] = bool,
) -> int:
    """How many of the `count` units of each block stay under the cut `asked`.

    counts: the numbers of units that may stay; only `loadable` ones are used. size: the parameters
    of the model with that many units. words: the name of the units. Raises PrunerZeroError naming
    the nearest possible number where the number asked for is not possible.
    """

    def first(candidates: Iterable[int]) -> int:
        # Transformers takes a millisecond for each.
        return next(filter(loadable, candidates), 0)

    fewest, step = first(counts), counts.step
    if not fewest:
        multiple = f", of which a multiple of {step} stays" * (step > 1)
        raise PrunerZeroError(f"none of the {count} {words} of a block can go{multiple}")
    if asked.parameters:
        reachable = size(fewest), size(first(reversed(counts)))
        most = most_parameters(model, asked.parameters, reachable, words)
        return first(n for n in reversed(counts) if size(n) <= most)
    wanted = count * (1 - asked.sparsity)
    kept = first(sorted(counts, key=lambda n: abs(n - wanted)))
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
