"""Removing whole decoder blocks: those that change the hidden state the least.

What they added is folded into the linear map before them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.calibration.walk import Stream, Walk
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import (
    Arguments,
    check_block_calls,
    record_block_calls,
    run_block,
)
from pruner_zero.models.block_sizes import block_sizes, has_code, set_block_sizes
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import block_list, find_blocks, find_matrices, size_of
from pruner_zero.progress import track
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.removal import most_parameters, without_weights
from pruner_zero.text.token_windows import Windows


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
    statistic = "influence"
    rule = "block influence, 1 minus the cosine of a block's input and output"

    def fit(self, language_model: LanguageModel) -> Self:
        """The cut itself. Raises PrunerZeroError as `limits`, and for blocks with biases."""
        sizes, _, _ = self.limits(language_model.model)
        _check_silent(language_model.model, sizes)
        return self

    def decide(
        self, language_model: LanguageModel, windows: Windows, scores: Mapping[str, Tensor]
    ) -> Self:
        """The blocks of the least influence, the first and the last block left out.

        scores: the influence (1, 1) of each matrix's block. Raises PrunerZeroError where the
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
        )

    def prepared(self, language_model: LanguageModel, tokens: Tensor) -> Self:
        """Dropped blocks are folded into those before them."""
        folded = fold_blocks(language_model, tokens, self.dropped) if self.folds else {}
        return replace(self, folded=folded)

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
        if self.parameters:
            reachable = whole - sum(sizes.values()), whole - min(sizes.values())
            return sizes, 0, most_parameters(model, self.parameters, reachable, "blocks")
        count = round(len(blocks) * self.sparsity)
        if 0 < count <= len(sizes):
            return sizes, count, whole
        raise PrunerZeroError(
            f"--sparsity {self.sparsity:g} of {len(blocks)} blocks, of which the first and the "
            f"last stay, would drop {count}: choose --sparsity "
            f"{min(max(count, 1), len(sizes)) / len(blocks):.4g}"
        )

    def goes(self, name: str) -> bool:
        return name in self.names

    def lost(self, model: PreTrainedModel) -> Iterator[tuple[nn.Parameter, int]]:
        blocks = find_blocks(model)
        for index in self.dropped:
            yield from ((parameter, parameter.numel()) for parameter in blocks[index].parameters())

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
    smaller = without_weights(model, config)
    described = [list(_description(block)) for block in find_blocks(smaller)] if smaller else []
    if described != [list(_description(block)) for block in kept]:
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
    sizes = [block for index, block in enumerate(block_sizes(config)) if index not in dropped]
    config.num_hidden_layers = count - len(dropped)
    if has_code(config):
        set_block_sizes(config, sizes)


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


# A few large channels dominate the mean diagonal of an MLP: a damping of a hundredth of it, as for
# masks, would restrain all other channels too much.
DAMPING = 0.001
# How far a block's change may differ from that of the map's outputs, relative to its size.
_NEAR = 1e-3


@torch.no_grad()
def fold_blocks(
    language_model: LanguageModel, tokens: Tensor, dropped: Collection[int]
) -> dict[int, float]:
    """Change, in place, the block before each run of `dropped` blocks to add their effect.

    The last linear map whose outputs are added to the residual stream (the second map of the MLP)
    is fitted by least squares to add what the run adds to the hidden states of the windows `tokens`
    (n, seqlen), computed by the blocks that stay. Returns, by block number, the squared error left
    as a share of the square of what the run added. A block without such a map, or with a norm after
    it, is unchanged and has no entry.
    Source: ReplaceMe (Shopkhoev et al. 2025, 2505.02819), which solves for a map of the MLP's
    outputs in the dense model, and multiplies the second one by it.
    """
    blocks = find_blocks(language_model.model)
    names: dict[nn.Module, str] = {m: name for name, m in language_model.model.named_modules()}
    stream = Walk(language_model, tokens).carry()
    kept = [index for index in range(max(dropped)) if index not in dropped]
    errors = {}
    for index in track(kept, "folding", len(kept)):
        run = list(takewhile(dropped.__contains__, count(index + 1)))
        first = stream.hidden[0], stream.arguments[index][0]
        linear = _added_map(blocks[index], *first) if run else None
        if linear is not None:
            errors[index] = _fold(linear, names[linear], blocks, [index, *run], stream)
        stream.advance(blocks[index], index)
    return errors


def _fold(
    linear: nn.Linear, name: str, blocks: Sequence[nn.Module], run: Sequence[int], stream: Stream
) -> float:
    """Fit `linear`, `name` of block run[0], to add the effect of the rest of `run`; the error left.

    stream: before block run[0]. The error is a share of the squared effect.
    """
    weight = linear.weight
    gram = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float32)
    cross = weight.new_zeros(weight.shape[1], weight.shape[0], dtype=torch.float32)
    seen: list[Tensor] = []
    size = 0.0
    for number, window in enumerate(stream.hidden):
        with linear.register_forward_hook(lambda _module, inputs, _: seen.append(inputs[0])):
            outputs = run_block(blocks[run[0]], window, stream.arguments[run[0]][number])
        target = outputs
        for index in run[1:]:
            target = run_block(blocks[index], target, stream.arguments[index][number])
        missing = (target.to(outputs.device) - outputs).float().flatten(0, -2)
        inputs = seen.pop().float().flatten(0, -2)
        gram.addmm_(inputs.t(), inputs)
        cross.addmm_(inputs.t(), missing)
        size += float(missing.square().sum())
    hessian = Hessian(gram, damping=DAMPING, name=name)
    change = torch.cholesky_solve(cross, torch.linalg.cholesky(hessian.damped()))
    weight += change.t().to(weight.dtype)
    fell = float((change * (2 * cross - gram @ change)).sum())
    return max(0.0, 1 - fell / size) if size else 0.0


def _added_map(block: nn.Module, window: Tensor, rest: Arguments) -> nn.Linear | None:
    """The last linear map whose output changes appear unchanged in the block's outputs.

    rest: the arguments of the block beside `window`.
    """
    before = run_block(block, window, rest)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(before.shape, generator=generator).to(before)
    noise *= before.float().std()
    maps = [module for module in block.modules() if type(module) is nn.Linear]
    for linear in reversed(maps):
        if linear.out_features != before.shape[-1]:
            continue
        with linear.register_forward_hook(lambda _module, _, out: out + noise.view_as(out)):
            change = run_block(block, window, rest) - before
        # Low precision rounds the sums.
        near = max(_NEAR, 8 * torch.finfo(before.dtype).eps)
        if float((change - noise).float().norm()) <= near * float(noise.float().norm()):
            return linear
    return None
