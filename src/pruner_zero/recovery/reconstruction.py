"""Reconstruction: the kept weights of one block trained towards the dense block's outputs."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruner_zero.calibration.gradients import gradients_to
from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.blocks import Arguments, run_block
from pruner_zero.models.structure import Matrix, experts_of, parameters_of
from pruner_zero.recovery.kept_weights import KeptWeights, float32_weights
from pruner_zero.recovery.train import BETAS, rate

# Tokens in an optimizer step, in as many windows as they fill.
TOKENS = 1024
# The highest learning rate, as a share of the root mean square of each parameter.
RATE = 0.01


def reconstruct(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Sequence[Tensor],
    arguments: Sequence[Arguments],
    target: Sequence[Tensor],
    passes: int,
    seed: int = 0,
) -> tuple[float, float]:
    """Train the kept weights of `matrices`, all of one loaded `block`, in place; zeros stay zero.

    hidden: the input (1, tokens, width) of the block in the pruned model, for each calibration
    window, with the `arguments` of `run_block`. target: the output that the dense block has in the
    dense model, so that the errors of earlier blocks are compensated too. passes: over the windows.
    Returns the error before and after: the squared difference from the targets, over what the dense
    block adds to the pruned model's activations. AdamW in float32, products in bfloat16 where the
    device has them natively. `seed` and the order of windows decide the result. Raises
    PrunerZeroError where the error is no longer finite.

    Source: reconstruction of a submodule after pruning, 2510.14444, of a block, EBFT (2402.12419).
    """
    learned = [
        KeptWeights(name, parameter, experts_of(matrices, name))
        for name, parameter in parameters_of(matrices).items()
    ]
    optimizer = torch.optim.AdamW(
        [{"params": [kept.values], "scale": kept.rate_scale} for kept in learned],
        RATE,
        BETAS,
        weight_decay=0.0,
        fused=True,
    )
    device = next(block.parameters()).device
    together = max(1, min(TOKENS // hidden[0].shape[1], len(hidden)))
    steps = passes * (len(hidden) // together)
    # What the dense block adds, so that the loss does not depend on the scale of activations.
    scale = _mean_square(hidden, target)
    compute = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))
    errors: list[float] = []

    def error(window: int) -> Tensor:
        output = run_block(block, hidden[window].float(), arguments[window]).float()
        return functional.mse_loss(output, target[window].to(output)) / scale

    with (
        float32_weights(block),
        gradients_to({kept.parameter: kept.pull for kept in learned}, block),
    ):
        for step, batch in enumerate(_batches(len(hidden), together, steps, seed)):
            for group in optimizer.param_groups:
                group["lr"] = RATE * group["scale"] * rate(step / steps)
            # One backward pass, so that gradients are gathered once a step.
            with compute:
                loss = torch.stack([error(window) for window in batch]).mean()
            loss.backward()
            errors.append(float(loss.detach()))
            optimizer.step()
            for kept in learned:
                kept.write()
                kept.clear()
    if not all(map(math.isfinite, errors)):
        raise PrunerZeroError(
            f"the reconstruction of block {matrices[0].block} diverged: leave out +reconstruct"
        )
    return errors[0], errors[-1]


def _mean_square(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The mean squared difference of two sequences of tensors of the same shapes."""
    pairs = zip(before, after, strict=True)
    means = [float(functional.mse_loss(b.float(), a.to(b.device).float())) for b, a in pairs]
    return max(sum(means) / len(means), torch.finfo(torch.float32).tiny)


def _batches(windows: int, together: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The numbers of the windows of each step, in another random order in each pass."""
    generator = torch.Generator().manual_seed(seed)
    each = windows // together
    for _ in range(steps // each):
        order = torch.randperm(windows, generator=generator).tolist()
        yield from (order[i * together : (i + 1) * together] for i in range(each))
