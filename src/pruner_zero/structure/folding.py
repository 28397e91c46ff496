"""Dropped blocks: what they added is folded into the linear map before them."""

from collections.abc import Collection, Sequence
from itertools import count, takewhile

import torch
from torch import Tensor, nn

from pruner_zero.calibration.walk import Stream, Walk
from pruner_zero.models.blocks import Arguments, run_block
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_blocks
from pruner_zero.progress import track
from pruner_zero.sparsity.hessian import Hessian

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
