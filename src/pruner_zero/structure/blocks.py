"""Removing whole decoder blocks: those that change the hidden state the least."""

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.blocks import check_block_calls, record_block_calls, run_block
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import block_list, find_blocks, find_matrices, size_of
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.folding import fold_blocks
from pruner_zero.structure.removal import REFUSALS, most_parameters, without_weights


@dataclass(frozen=True)
class Blocks(Cut):
    """Whole blocks, those of the least influence on what passes through them.

    folds: whether the effect of the dropped blocks is folded into those before them. influence: of
    each dropped block, the least first.
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

    unit = "blocks"

    @property
    def statistic(self) -> str:
        return "influence"

    @property
    def rule(self) -> str:
        return "block influence, 1 minus the cosine of a block's input and output"

    def fit(self, language_model: LanguageModel) -> Self:
        """The cut itself. Raises PrunerZeroError as `limits`, and for blocks with biases."""
        sizes, _, _ = self.limits(language_model.model)
        _check_silent(language_model.model, sizes)
        return self

    def decide(
        self, language_model: LanguageModel, tokens: Tensor, scores: Mapping[str, Tensor]
    ) -> Self:
        """The blocks of the least influence, the first and the last block left out.

        Dropped blocks are folded into those before them. scores: the influence (1, 1) of each
        matrix's block. Raises PrunerZeroError where the
        configuration cannot describe the model without the blocks.
        Source: ShortGPT (Men et al. 2024, 2403.03853), which may also remove the first and the last
        block.
        """
        model = language_model.model
        sizes, count, most = self.limits(model)
        matrices = {matrix.name: matrix.block for matrix in find_matrices(model)}
        influence = {block: float(scores[name]) for name, block in matrices.items()}
        left = size_of(model)[0]
        order = iter(sorted(sizes, key=influence.__getitem__))
        chosen: list[int] = []
        while len(chosen) < count or left > most:
            chosen.append(next(order))
            left -= sizes[chosen[-1]]
        dropped = tuple(sorted(chosen))
        check_dropped(model, dropped)
        return replace(
            self,
            sparsity=len(dropped) / len(find_blocks(model)),
            influence={index: influence[index] for index in chosen},
            dropped=dropped,
            names=frozenset(name for name, block in matrices.items() if block in dropped),
            folded=fold_blocks(language_model, tokens, dropped) if self.folds else {},
        )

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

    def goes(self, name: str) -> bool:
        return name in self.names

    def size(self, model: PreTrainedModel) -> tuple[int, int]:
        blocks = find_blocks(model)
        numbers, nbytes = size_of(model)
        for index in self.dropped:
            of_block = size_of(blocks[index])
            numbers, nbytes = numbers - of_block[0], nbytes - of_block[1]
        return numbers, nbytes

    def cut(self, model: PreTrainedModel) -> None:
        drop_blocks(model, self.dropped)

    def describe(self) -> dict[str, Any]:
        influence = {str(index): round(value, 5) for index, value in self.influence.items()}
        folded = {str(index): round(error, 4) for index, error in self.folded.items()}
        return {"block_influence": influence, "folded": folded}

    def __str__(self) -> str:
        listed = f": {', '.join(map(str, self.dropped))}" if self.dropped else ""
        folded = f", folded into {', '.join(map(str, self.folded))}" if self.folded else ""
        return f"{100 * self.sparsity:.4g}% of the blocks{listed}{folded}"


def _count(blocks: int, sparsity: float) -> int:
    """The number of blocks to remove. Raises PrunerZeroError for none, and for too many."""
    count = round(blocks * sparsity)
    if not 0 < count <= blocks - 2:
        raise PrunerZeroError(
            f"--sparsity {sparsity:g} of {blocks} blocks, of which the first and the last stay, "
            f"would drop {count}: choose --sparsity {min(max(count, 1), blocks - 2) / blocks:.4g}"
        )
    return count


@torch.no_grad()
def _check_silent(model: PreTrainedModel, blocks: Collection[int]) -> None:
    """Raise PrunerZeroError where one of `blocks` without weights does not pass on its input."""
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    check_block_calls(model, tokens)
    calls = record_block_calls(model, tokens)
    matrices = find_matrices(model)
    for index in blocks:
        silent = deepcopy(find_blocks(model)[index])
        for matrix in matrices:
            if matrix.block == index:
                silent.get_parameter(matrix.parameter_name.split(f".{index}.", 1)[1]).zero_()
        passed = run_block(silent, calls.hidden[0], calls.arguments[index][0])
        if not torch.equal(passed, calls.hidden[0].to(passed.device)):
            raise PrunerZeroError(
                f"--structure blocks cannot drop block {index} of the {model.config.model_type} "
                "family: even without weights it adds its biases to what passes through; leave "
                "out --structure"
            )


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
        fits = [list(_description(block)) for block in kept] == [
            list(_description(block)) for block in described
        ]
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
    for key, value in config.to_dict().items():
        # Token ids are a list too where several end a text.
        if isinstance(value, list) and len(value) == count and not key.endswith("token_id"):
            kept = [entry for index, entry in enumerate(value) if index not in dropped]
            setattr(config, key, kept)
    config.num_hidden_layers = count - len(dropped)


def _description(block: nn.Module) -> Iterator[tuple[Any, ...]]:
    """The properties of a block that describe it, without its number and weights."""
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
