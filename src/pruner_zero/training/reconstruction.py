"""Reconstruction: one block trained towards the dense block's outputs, its masks with it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import Activations, Arguments, run_batch
from pruner_zero.models.matrices import Matrix, experts_of, parameters_of
from pruner_zero.models.next_token import fast_products, only_these_learn
from pruner_zero.training.factored import LEAST_SCALE
from pruner_zero.training.train import epochs, float32_weights, rate

# Tokens in an optimizer step, in as many windows as they fill.
TOKENS = 1024
# The highest learning rate, as a share of the root mean square of each parameter.
RATE = 0.01
# AdamW's: of so few steps 0.999 would average too many. Its epsilon is below the gradients of the
# weights of any block, whose loss is a mean over all of them.
BETAS, EPSILON = (0.9, 0.95), 1e-12
# The least mean square of a channel, as a share of the mean over the channels.
_LEAST_SHARE = 1e-6
# Masks are chosen anew before every so many steps, in this share of them (benchmarks/decisions.md).
CHOSEN_EVERY, CHOOSING = 2, 0.8


@dataclass(frozen=True)
class OpenMask:
    """A mask that follows the weights of its matrix while they are trained.

    dense: the weights (out, in) that training starts from, pruned ones too. choose: the mask, bool,
    True = kept, of the trained weights (out, in) in float32, always with as many zeros.
    """

    dense: Tensor
    choose: Callable[[Tensor], Tensor]


def reconstruct(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Activations,
    arguments: Sequence[Arguments],
    target: Activations,
    passes: int,
    seed: int = 0,
    open_masks: Mapping[Matrix, OpenMask] | None = None,
) -> None:
    """Train the weights of `matrices`, all of one loaded `block`, in place; zeros stay zero.

    All weights of matrices in `open_masks` are trained, by the gradients at the masked weights, and
    the masks are chosen anew from them until a fifth of the steps is left.

    hidden: the input (1, tokens, width) of the block in the pruned model, for each calibration
    window, with the `arguments` of `run_block`. target: the output that the dense block has in the
    dense model, so that the errors of earlier blocks are compensated too. passes: over the windows.
    The loss is `relative_error`. AdamW in float32, products in bfloat16 where the device has them
    natively. `seed` and the order of windows decide the result. Raises PrunerZeroError where the
    loss is no longer finite.

    Source: reconstruction of a submodule after pruning, 2510.14444, of a block, EBFT (2402.12419).
    Masks that weights are trained beneath: the straight-through estimator (Bengio et al. 2013,
    1308.3432), of N:M masks by magnitude in training from scratch SR-STE (Zhou et al. 2021,
    2102.04010), which lets pruned weights decay; here they do not.
    """
    opened = open_masks or {}
    for matrix, mask in opened.items():
        matrix.weight.copy_(mask.dense)
    device = next(block.parameters()).device
    together = max(1, min(TOKENS // hidden[0].shape[1], len(hidden)))
    each = len(hidden) // together
    batches = [
        order[together * number :][:together]
        for order in islice(epochs(len(hidden), seed), passes)
        for number in range(each)
    ]
    with float32_weights(list(block.parameters())):
        parameters = parameters_of(matrices)
        experts = {p: experts_of(matrices, name) for name, p in parameters.items()}
        masks = {p: _mask(p, numbers) for p, numbers in experts.items()}
        # Without decay a pruned weight, whose gradient is 0 in every step, is never changed.
        optimizer = torch.optim.AdamW(
            [{"params": [p], "scale": rate_scale(p.data, experts[p])} for p in masks],
            RATE,
            BETAS,
            EPSILON,
            weight_decay=0.0,
            fused=True,
        )
        # The weights of open masks; the parameters have zeros in each forward and backward pass.
        beneath = {matrix.parameter: matrix.parameter.data for matrix in opened}
        kept = {parameter: torch.ones_like(weights) for parameter, weights in beneath.items()}
        closing = round(CHOOSING * len(batches))
        with torch.enable_grad(), only_these_learn(block, masks):
            for step, batch in enumerate(batches):
                for matrix, mask in opened.items():
                    chosen = matrix.view(kept[matrix.parameter])
                    if step < closing and step % CHOSEN_EVERY == 0:
                        chosen.copy_(mask.choose(matrix.weight))
                    trained_where = matrix.view(masks[matrix.parameter])
                    trained_where.copy_(chosen if step >= closing else torch.ones(()))
                for parameter, weights in beneath.items():
                    parameter.data = weights * kept[parameter]
                for group in optimizer.param_groups:
                    group["lr"] = RATE * group["scale"] * rate(step / len(batches))
                inputs = [hidden[window].float() for window in batch]
                goal = torch.cat([target[window].to(device) for window in batch]).float()
                with fast_products(block, device):
                    output = run_batch(block, inputs, [arguments[window] for window in batch])
                loss = relative_error(output.float(), goal)
                if not math.isfinite(float(loss.detach())):
                    raise PrunerZeroError(
                        f"the reconstruction of block {matrices[0].block} diverged: leave out "
                        "+reconstruct"
                    )
                loss.backward()
                for parameter, trained in masks.items():
                    # None for an expert that no token reached.
                    if parameter.grad is not None:
                        parameter.grad *= trained
                for parameter, weights in beneath.items():
                    parameter.data = weights
                optimizer.step()
                optimizer.zero_grad()
        for parameter, weights in beneath.items():
            parameter.data = weights.mul_(kept[parameter])


def rate_scale(weights: Tensor, experts: Sequence[int] | None = None) -> float:
    """What a learning rate is multiplied by: the root mean square of what is trained, zeros too.

    experts: the numbers of the trained ones where `weights` stacks experts. Adam's steps have the
    same size for every weight, and the weights of models differ in size by a factor of ten.
    Source: Adafactor's relative step size (Shazeer & Stern 2018, 1804.04235), with their least
    scale of 0.001.
    """
    trained = weights if experts is None else weights[list(experts)]
    return max(LEAST_SCALE, math.sqrt(float(trained.float().square().mean())))


def _mask(parameter: Tensor, experts: Sequence[int] | None) -> Tensor:
    """1 for trained weights: the kept ones, of the `experts` alone where it stacks experts."""
    mask = parameter.data != 0
    if experts is not None:
        others = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        others[list(experts)] = False
        mask[others] = False
    # In the dtype of the gradients, since a product would convert it in every step.
    return mask.to(parameter.dtype)


def relative_error(output: Tensor, goal: Tensor) -> Tensor:
    """The squared difference over the mean square of the goal, in each token and channel alike.

    Both (n, tokens, width), float32; a scalar without unit. Each token is divided by the root mean
    square of its goal first, as by the norm of the next block. Otherwise tokens and channels whose
    activations are a hundred times those of others would be all that counts (2402.17762).
    """
    size = goal.square().mean(-1, keepdim=True).clamp_min(torch.finfo(goal.dtype).tiny)
    error = ((output - goal).square() / size).mean((0, 1))
    return (error / (goal.square() / size).mean((0, 1)).clamp_min(_LEAST_SHARE)).mean()
