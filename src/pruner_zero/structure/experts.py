"""Removing whole experts of a mixture: those that add the least to their block's outputs.

The tensors with a slice for each expert are found by building, without weights, the model of a
configuration with one expert less: tensors that become smaller belong to the experts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices, set_tensor
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.removal import take_units, units_left, without_weights
from pruner_zero.structure.units import signed_squares
from pruner_zero.text.token_windows import Windows

# The fields of configurations that hold the number of experts of a block.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Mixture:
    """The experts of one block.

    consumer: the name of the stack of matrices that gives the outputs; the module that holds it is
    called with hidden states (tokens, width), the numbers of the experts chosen for each token and
    their router weights, both (tokens, chosen). tensors: the names of the parameters and buffers
    with a slice for each expert, and the axis of the slices.
    """

    block: int
    consumer: str
    tensors: Mapping[str, int]

    @property
    def experts(self) -> str:
        """The name of the module that holds the matrices of the experts."""
        return self.consumer.rpartition(".")[0]


@dataclass(frozen=True)
class Mixtures:
    """The mixtures of a model, of `count` experts each, of which `chosen` compute for a token.

    field: the field of the configuration that holds the count; attributes: the modules and their
    attributes that hold it.
    """

    count: int
    chosen: int
    field: str
    attributes: tuple[tuple[str, str], ...]
    blocks: tuple[Mixture, ...]


def has_experts(model: PreTrainedModel) -> bool:
    """Whether the configuration of `model` has a number of experts."""
    return bool(_field(model))


def _field(model: PreTrainedModel) -> str:
    """The field of the configuration that holds the number of experts; empty where none does."""
    counts = (field for field in _COUNTS if isinstance(getattr(model.config, field, None), int))
    return next(counts, "")


def find_mixtures(model: PreTrainedModel) -> Mixtures:
    """The mixtures of `model`.

    Raises PrunerZeroError naming the family where there are none, and where a smaller number in the
    configuration does not describe the same model without some of its experts.
    """
    config, field = model.config, _field(model)
    chosen = getattr(config, "num_experts_per_tok", None)
    if not field or not isinstance(chosen, int):
        raise _refused(model, "its configuration does not say how many experts there are")
    if (getattr(config, "n_group", None) or 1) > 1:
        raise _refused(model, "its router chooses among groups of experts, all of one size")
    count = getattr(config, field)
    if count <= chosen:
        raise PrunerZeroError(
            f"none of the {count} experts of a block can go, since the router chooses {chosen} for "
            "each token: leave out --structure"
        )
    smaller_config = deepcopy(config)
    setattr(smaller_config, field, count - 1)
    smaller_model = without_weights(model, smaller_config)
    if smaller_model is None:
        raise _refused(model, f"its configuration does not take {count - 1} of them")
    tensors = tensors_of(model)
    axes = _axes(model, smaller_model, count)
    names = {module: name for name, module in model.named_modules()}
    blocks = []
    for index, block in enumerate(find_blocks(model)):
        own = [name for name in axes if name.startswith(f"{names[block]}.")]
        inside = {name: axes.pop(name) for name in own}
        if not inside:
            continue
        stacks = [name for name in inside if tensors[name].ndim == 3]
        owners = {name.rpartition(".")[0] for name in stacks}
        if len(owners) != 1 or len(signature(model.get_submodule(*owners).forward).parameters) != 3:
            raise _refused(model, "its experts are not called with what the router chose")
        if not all(tensor.is_floating_point() for tensor in block.state_dict().values()):
            raise _refused(model, "its router keeps the numbers of experts in a table")
        blocks.append(Mixture(index, stacks[-1], inside))
    if axes or not blocks:
        raise _refused(model, "its experts are not in the decoder blocks")
    smaller = dict(smaller_model.named_modules())
    attributes = [
        (name, key)
        for module, name in names.items()
        for key, value in vars(module).items()
        if isinstance(value, int) and value == count and vars(smaller[name]).get(key) == count - 1
    ]
    return Mixtures(count, chosen, field, tuple(attributes), tuple(blocks))


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters and buffers of `model` by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _axes(model: PreTrainedModel, smaller_model: PreTrainedModel, count: int) -> dict[str, int]:
    """The tensors that are smaller in the model with an expert less, and along which axis."""
    tensors, smaller = tensors_of(model), tensors_of(smaller_model)
    if tensors.keys() != smaller.keys():
        raise _refused(model, "the experts of a block are not in one tensor")
    axes = {}
    for name, tensor in tensors.items():
        before, after = tuple(tensor.shape), tuple(smaller[name].shape)
        if before == after:
            continue
        axis = next(axis for axis, size in enumerate(before) if size != after[axis])
        if before[axis] != count or after != (*before[:axis], count - 1, *before[axis + 1 :]):
            raise _refused(model, f"the shape of {name} depends on the number of experts")
        axes[name] = axis
    return axes


def _refused(model: PreTrainedModel, why: str) -> PrunerZeroError:
    return PrunerZeroError(
        f"--structure experts cannot remove any of the {model.config.model_type} family: {why}; "
        "leave out --structure"
    )


NONE_FOUND = Mixtures(0, 0, "", (), ())
# By the number of the block, a score for each of its experts, None where no token reached it.
Scores = Mapping[int, Sequence[float | None]]


@dataclass(frozen=True)
class Experts(Cut):
    """Whole experts, equally many of every block with experts, by a score.

    by_metric: whether a metric scores the experts, and not REAP. mixtures: of the model, found by
    `fit`. kept: the number of experts that stay in each, found by `fit`. scores: found by `decide`.
    """

    sparsity: float
    parameters: float | None = None
    by_metric: bool = False
    mixtures: Mixtures = field(default=NONE_FOUND, repr=False)
    kept: int = 0
    scores: Scores = field(default_factory=dict, repr=False)

    unit = "experts"

    @property
    def statistic(self) -> str | None:
        return None if self.by_metric else "reap"

    @property
    def rule(self) -> str | None:
        words = "REAP, the mean over an expert's tokens of router weight times norm of its output"
        return None if self.by_metric else words

    def fit(self, language_model: LanguageModel) -> Self:
        """As for `Cut`; at least as many experts stay as the router chooses for a token."""
        model = language_model.model
        mixtures = find_mixtures(model)
        count = mixtures.count
        sizes = {
            kept: replace(self, mixtures=mixtures, kept=kept).size(model)[0]
            for kept in range(mixtures.chosen, count)
        }
        kept = units_left(model, self, count, sizes, "experts")
        return replace(self, sparsity=1 - kept / count, mixtures=mixtures, kept=kept)

    def decide(
        self, language_model: LanguageModel, windows: Windows, scores: Mapping[str, Tensor]
    ) -> Self:
        """The score of every expert: REAP's, or the total of its matrix that gives the outputs.

        scores: by matrix name, REAP (1, 1), or a metric's scores (out, in), of which the squares
        with the sign of the score are added up.
        """
        values: dict[int, list[float | None]] = {}
        consumers = [f"{mixture.consumer}*" for mixture in self.mixtures.blocks]
        for matrix in find_matrices(language_model.model, consumers):
            value: float | None = None
            if matrix.name in scores:
                score = scores[matrix.name]
                if self.by_metric:
                    value = sum(float(part.sum()) for part in signed_squares(score, matrix.name))
                elif score.isfinite():
                    value = float(score)
            values.setdefault(matrix.block, []).append(value)
        return replace(self, scores=values)

    @property
    def include(self) -> list[str]:
        """Patterns of the names of all matrices of experts."""
        return [f"{mixture.experts}.*" for mixture in self.mixtures.blocks]

    @cached_property
    def stay(self) -> dict[int, list[int]]:
        """By the number of the block, the experts with the highest scores, in order."""
        removed = self.mixtures.count - self.kept
        stay = {}
        for block, scores in self.scores.items():
            # An expert that no token reached adds nothing.
            comparable = [-math.inf if score is None else score for score in scores]
            ranked = sorted(range(len(scores)), key=comparable.__getitem__)
            stay[block] = sorted(ranked[removed:])
        return stay

    def goes(self, name: str) -> bool:
        owner, _, local = name.rpartition(".")
        block = next(mixture.block for mixture in self.mixtures.blocks if mixture.experts == owner)
        return int(local.rstrip("]").rpartition("[")[2]) not in self.stay[block]

    def lost(self, model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
        parameters, count = dict(model.named_parameters()), self.mixtures.count
        for name in (name for mixture in self.mixtures.blocks for name in mixture.tensors):
            if name in parameters:
                yield parameters[name], parameters[name].numel() // count * (count - self.kept)

    def cut(self, model: PreTrainedModel) -> None:
        mixtures, stay, before = self.mixtures, self.stay, tensors_of(model)
        for mixture in mixtures.blocks:
            for name, axis in mixture.tensors.items():
                tensor = before[name].detach()
                places = torch.tensor(stay[mixture.block], device=tensor.device)
                left = take_units(tensor, places, mixtures.count, axis)
                if isinstance(before[name], nn.Parameter):
                    before[name].data, before[name].grad = left, None
                else:
                    set_tensor(model, name, left)
        for owner, attribute in mixtures.attributes:
            setattr(model.get_submodule(owner), attribute, self.kept)
        setattr(model.config, mixtures.field, self.kept)

    def describe(self) -> dict[str, Any]:
        return {
            "experts": {str(block): stay for block, stay in self.stay.items()},
            "expert_scores": {str(block): list(scores) for block, scores in self.scores.items()},
        }

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the experts of every block"
