"""Removing whole decoder blocks: those that change the hidden state the least."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    check_dropped,
    drop_blocks,
    find_blocks,
    find_matrices,
    run_block,
    run_windows,
    size_of,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.folding import fold_blocks
from pruner_zero.pruning.removal import Removal, most_parameters
from pruner_zero.sparsity import LazyTensors


@dataclass(frozen=True)
class Blocks(Removal):
    """Whole blocks are removed, chosen beforehand by their influence, without scores.

    sparsity: the share of blocks to remove; parameters: as in `Structured`. folds: whether the
    effect of the dropped blocks is folded. influence: of each dropped block, the least first.
    dropped: the numbers of the blocks to remove; names: of all their matrices. folded: from
    `fold_blocks`.
    """

    sparsity: float
    parameters: float | None = None
    folds: bool = True
    influence: Mapping[int, float] = field(default_factory=dict, repr=False)
    dropped: tuple[int, ...] = ()
    names: frozenset[str] = field(default=frozenset(), repr=False)
    folded: Mapping[int, float] = field(default_factory=dict)

    @property
    def chosen_by(self) -> str | None:
        return "block influence, 1 minus the cosine of a block's input and output"

    def of_model(self, model: PreTrainedModel) -> Self:
        self.limits(model)
        return self

    def limits(self, model: PreTrainedModel) -> tuple[dict[int, int], int, int]:
        """Parameters of the blocks that can go, how many of them go, and the most that are left.

        Raises PrunerZeroError for a share that leaves out no block or too many, and for a number of
        parameters that cannot be left.
        """
        blocks = find_blocks(model)
        sizes = {index: size_of(blocks[index])[0] for index in range(1, len(blocks) - 1)}
        if not sizes:
            raise PrunerZeroError(
                f"none of {len(blocks)} blocks can be removed, since the first and the last stay: "
                "leave out --structure"
            )
        whole = size_of(model)[0]
        if not self.parameters:
            return sizes, _count(len(blocks), self.sparsity), whole
        reachable = whole - sum(sizes.values()), whole - min(sizes.values())
        return sizes, 0, most_parameters(model, self.parameters, reachable, "blocks")

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        def mask(name: str) -> Tensor:
            return torch.full_like(scores[name], name not in self.names, dtype=torch.bool)

        return LazyTensors(scores, mask)

    def size(self, model: PreTrainedModel) -> tuple[int, int]:
        blocks = find_blocks(model)
        numbers, nbytes = size_of(model)
        for index in self.dropped:
            of_block = size_of(blocks[index])
            numbers, nbytes = numbers - of_block[0], nbytes - of_block[1]
        return numbers, nbytes

    def fold(
        self, language_model: LanguageModel, tokens: Tensor, progress: Progress = SILENT
    ) -> "Blocks":
        """Fold dropped blocks into the blocks before them, in place: `fold_blocks`."""
        return replace(self, folded=fold_blocks(language_model, tokens, self.dropped, progress))

    def shrink(self, model: PreTrainedModel) -> None:
        drop_blocks(model, self.dropped)

    def to_json(self) -> dict[str, Any]:
        influence = {str(index): round(value, 5) for index, value in self.influence.items()}
        folded = {str(index): round(error, 4) for index, error in self.folded.items()}
        return {"block_influence": influence, "folded": folded}

    def __str__(self) -> str:
        listed = f": {', '.join(map(str, self.dropped))}" if self.dropped else ""
        folded = f", folded into {', '.join(map(str, self.folded))}" if self.folded else ""
        return f"{100 * self.sparsity:.4g}% of the blocks{listed}{folded}"


@torch.no_grad()
def choose_blocks(
    language_model: LanguageModel, tokens: Tensor, asked: Blocks, progress: Progress = SILENT
) -> Blocks:
    """The blocks of the least influence, as many as `asked` says; the first and last block stay.

    tokens: windows (n, seqlen). Raises PrunerZeroError as `Blocks.limits`, and where a block cannot
    be dropped.
    Source: ShortGPT (Men et al. 2024, 2403.03853), which may also remove the first and the last
    block.
    """
    sizes, count, most = asked.limits(language_model.model)
    left = size_of(language_model.model)[0]
    matrices = [matrix for matrix in find_matrices(language_model.model) if matrix.block in sizes]
    _check_silent(language_model, tokens[:1], tuple(sizes), matrices)
    influence = block_influence(language_model, tokens, progress)
    _check_measured(influence)
    order = iter(sorted(sizes, key=influence.__getitem__))
    chosen: list[int] = []
    while len(chosen) < count or left > most:
        chosen.append(next(order))
        left -= sizes[chosen[-1]]
    dropped = tuple(sorted(chosen))
    check_dropped(language_model.model, dropped)
    names = frozenset(matrix.name for matrix in matrices if matrix.block in dropped)
    share = len(dropped) / len(find_blocks(language_model.model))
    return replace(
        asked,
        sparsity=share,
        influence={index: influence[index] for index in chosen},
        dropped=dropped,
        names=names,
    )


@torch.no_grad()
def block_influence(
    language_model: LanguageModel, tokens: Tensor, progress: Progress = SILENT
) -> list[float]:
    """Of every block 1 − cos(input, output), the mean over all tokens of the windows (n, seqlen).

    Source: ShortGPT, equation 1.
    """
    calls = language_model.block_calls(tokens)
    hidden, arguments = calls.hidden, calls.arguments
    # Holds the inputs of the first block, which would stay in memory to the end.
    del calls
    influence = []
    blocks = find_blocks(language_model.model)
    for index in progress.track(range(len(blocks)), "block influence", len(blocks)):
        outputs = run_windows(blocks[index], hidden, arguments[index])
        cosines = [
            float(cosine_similarity(before.to(after.device).float(), after.float(), dim=-1).mean())
            for before, after in zip(hidden, outputs, strict=True)
        ]
        influence.append(1 - fmean(cosines))
        hidden = outputs
    return influence


def _check_measured(influence: list[float]) -> None:
    """Raise PrunerZeroError where an influence is not finite, as where activations overflow."""
    for index, value in enumerate(influence):
        if not isfinite(value):
            raise PrunerZeroError(
                f"block {index} cannot be judged, since the model's outputs are not finite: choose "
                "--dtype bfloat16 or float32, or repair the checkpoint"
            )


def _count(blocks: int, sparsity: float) -> int:
    """The number of blocks to remove. Raises PrunerZeroError for none, and for too many."""
    count = round(blocks * sparsity)
    if not 0 < count <= blocks - 2:
        raise PrunerZeroError(
            f"--sparsity {sparsity:g} of {blocks} blocks, of which the first and the last stay, "
            f"would drop {count}: choose --sparsity {min(max(count, 1), blocks - 2) / blocks:.4g}"
        )
    return count


def _check_silent(
    language_model: LanguageModel, window: Tensor, dropped: tuple[int, ...], matrices: list[Matrix]
) -> None:
    """Raise PrunerZeroError where a block of zeros does not pass on its input."""
    calls = language_model.block_calls(window)
    for index in dropped:
        block = find_blocks(language_model.model)[index]
        with torch.no_grad():
            silent = deepcopy(block)
            for matrix in matrices:
                if matrix.block == index:
                    name = matrix.parameter_name.split(f".{index}.", 1)[1]
                    silent.get_parameter(name).zero_()
            passed = run_block(silent, calls.hidden[0], calls.arguments[index][0])
        if not torch.equal(passed, calls.hidden[0].to(passed.device)):
            raise PrunerZeroError(
                f"--structure blocks cannot drop block {index} of the "
                f"{language_model.model.config.model_type} family: even without weights it adds "
                "its biases to what passes through; leave out --structure"
            )
