"""Removing whole experts of a mixture: those that add the least to their block's outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices, set_tensor
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.mixtures import Mixtures, find_mixtures, tensors_of
from pruner_zero.structure.removal import size_left, take_units, units_left
from pruner_zero.structure.units import signed_squares

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
    mixtures: Mixtures | None = field(default=None, repr=False)
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
        count, counts = mixtures.count, range(mixtures.chosen, mixtures.count)

        def size(kept: int) -> int:
            return replace(self, mixtures=mixtures, kept=kept).size(model)[0]

        kept = units_left(model, self, count, counts, size, "experts")
        return replace(self, sparsity=1 - kept / count, mixtures=mixtures, kept=kept)

    def decide(
        self, language_model: LanguageModel, tokens: Tensor, scores: Mapping[str, Tensor]
    ) -> Self:
        """The score of every expert: REAP's, or the total of its matrix that gives the outputs.

        scores: by matrix name, REAP (1, 1), or a metric's scores (out, in), of which the squares
        with the sign of the score are added up.
        """
        values: dict[int, list[float | None]] = {}
        consumers = [f"{mixture.consumer}*" for mixture in self._mixtures.blocks]
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
        return [f"{mixture.experts}.*" for mixture in self._mixtures.blocks]

    @cached_property
    def stay(self) -> dict[int, list[int]]:
        """By the number of the block, the experts with the highest scores, in order."""
        removed = self._mixtures.count - self.kept
        stay = {}
        for block, scores in self.scores.items():
            # An expert that no token reached adds nothing.
            comparable = [-math.inf if score is None else score for score in scores]
            ranked = sorted(range(len(scores)), key=comparable.__getitem__)
            stay[block] = sorted(ranked[removed:])
        return stay

    def goes(self, name: str) -> bool:
        owner, _, local = name.rpartition(".")
        block = next(mixture.block for mixture in self._mixtures.blocks if mixture.experts == owner)
        return int(local.rstrip("]").rpartition("[")[2]) not in self.stay[block]

    def size(self, model: PreTrainedModel) -> tuple[int, int]:
        names = (name for mixture in self._mixtures.blocks for name in mixture.tensors)
        return size_left(model, names, self._mixtures.count, self.kept)

    def cut(self, model: PreTrainedModel) -> None:
        mixtures, stay, before = self._mixtures, self.stay, tensors_of(model)
        for mixture in mixtures.blocks:
            for name, axis in mixture.tensors.items():
                tensor = before[name].detach()
                places = torch.tensor(stay[mixture.block], device=tensor.device)
                left = take_units(tensor, places, mixtures.count, axis)
                if isinstance(before[name], nn.Parameter):
                    left = nn.Parameter(left, before[name].requires_grad)
                set_tensor(model, name, left)
        for owner, attribute in mixtures.attributes:
            setattr(model.get_submodule(owner), attribute, self.kept)
        setattr(model.config, mixtures.field, self.kept)

    def describe(self) -> dict[str, Any]:
        return {
            "experts": {str(block): stay for block, stay in self.stay.items()},
            "expert_scores": {str(block): list(scores) for block, scores in self.scores.items()},
        }

    @property
    def _mixtures(self) -> Mixtures:
        assert self.mixtures is not None
        return self.mixtures

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.4g}% of the experts of every block"
