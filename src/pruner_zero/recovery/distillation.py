"""Distillation: the kept weights trained towards the dense model's predictions."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pruner_zero.devices import available_bytes
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.loss import in_float32
from pruner_zero.models.structure import Matrix, check_weights, size_of
from pruner_zero.pruning.method import ModelStep, Point
from pruner_zero.recovery.train import Training
from pruner_zero.settings.recover import RecoverSettings
from pruner_zero.text.windows import Windows

# Tokens in an optimizer step, in as many windows as they fill.
TOKENS = 1024
# Bytes of a trained weight: its position, its value, its gradient and two moments.
_TRAINED = 5 * 4
# The share of the windows that only the validation loss is measured on.
_HELD_OUT = 1 / 16
# The number of logits processed at a time: larger temporary tensors are slower, and with a
# vocabulary of 262,144 and 1024 tokens each of them would take a gigabyte.
_CHUNK = 2**22


def check_memory(
    model: LanguageModel, matrices: Sequence[Matrix], sparsity: float, *, cut: bool = False
) -> None:
    """Raise PrunerZeroError where distillation of the dense `model` cannot fit in the memory.

    It holds at least the teacher, the weights in float32 and the optimizer's tensors. The memory is
    what is available on the devices that hold the model, whose bytes are part of those needed.
    sparsity: the pruned share of the `matrices`. cut: whether pruned weights are cut out before.
    """
    parameters, _ = size_of(model.model)
    weights = sum(matrix.weight.numel() for matrix in matrices)
    left = parameters - round(weights * sparsity) if cut else parameters
    # The teacher takes as many bytes as the model that is in memory already.
    more = 4 * left + _TRAINED * round(weights * (1 - sparsity))
    devices = {parameter.device for parameter in model.model.parameters()}
    available = [available_bytes(device) for device in devices]
    known = [count for count in available if count is not None]
    if len(known) == len(available) and more > sum(known):
        raise PrunerZeroError(
            f"distillation needs at least {more / 2**30:.1f} GiB beside {model.name}, and "
            f"{sum(known) / 2**30:.1f} are available: free memory, or leave it out, by --distill 0 "
            "or without +distill=N"
        )


def distillation(
    dense: LanguageModel, windows: Windows, steps: int, *, seed: int = 0, folder: Path | None = None
) -> Callable[[Sequence[Matrix]], Sequence[Point]]:
    """Prepare to train what pruning will leave of `dense`: call it first, and the result last.

    The teacher is a copy of `dense`, which pruning may then change in place. The returned function
    takes the matrices whose kept weights are trained, those of `dense` after pruning; all other
    weights stay as they are, and pruned ones zero. It trains in place and returns the learning
    curve.

    The loss is KL(teacher ‖ pruned) over the next tokens of `windows`, without the next-token loss
    of the text, so that text that the dense model wrote can be used. Every step takes about 1024
    tokens, or all windows. The steps alone decide the result, which is the same for a run that was
    interrupted and has its journal in `folder`; a damaged journal is deleted, since training takes
    minutes. Raises PrunerZeroError for fewer than two windows; the function raises it where the
    loss is no longer finite.

    Source: distillation, Hinton et al. 2015 (1503.02531); of pruned language models, Sanh et al.
    2020 (2005.07683). On text that the teacher wrote: Kim & Rush 2016 (1606.07947).
    """
    if len(windows) < 2:
        raise PrunerZeroError(
            "distillation needs 2 calibration windows, one of them for validation: give more "
            "--windows, or --distill 0"
        )
    teacher = deepcopy(dense.model)

    def train(matrices: Sequence[Matrix]) -> Sequence[Point]:
        held_out = max(1, round(len(windows) * _HELD_OUT))
        settings = RecoverSettings(
            model=dense.name,
            text="the calibration windows",
            steps=steps,
            batch=max(1, min(TOKENS // windows.seqlen, len(windows) - held_out)),
            seqlen=windows.seqlen,
            seed=seed,
            keep="last",
        )
        check_weights(matrices)
        identity = {"matrices": [matrix.name for matrix in matrices]}
        training = Training(
            dense.model,
            matrices,
            [replace(windows, tokens=windows.tokens[:-held_out])],
            [1.0],
            replace(windows, tokens=windows.tokens[-held_out:]),
            settings,
            partial(distillation_loss, dense.model, teacher, share=1.0),
            Journal(folder, identity, overwrite=True) if folder else None,
            "leave out the distillation, by --distill 0 or without +distill=N",
            validations=1,
        )
        training.run()
        return training.state.curve

    return train


def distillation_loss(
    model: nn.Module, teacher: nn.Module, windows: Tensor, share: float
) -> Tensor:
    """`share` · KL(teacher ‖ model) + (1 − `share`) · next-token loss of `windows` (n, tokens).

    A scalar in nats per token, computed in fp32, over the positions that have a next token. No
    other tensors of the size of the logits are made. Can be differentiated once.
    """
    windows = windows.to(next(model.parameters()).device)
    logits = model(windows, use_cache=False).logits
    weight = next(teacher.parameters())
    # Autocast refuses operations on a float16 and a bfloat16 tensor.
    narrow = weight.dtype == torch.float16
    autocast = torch.autocast(weight.device.type, enabled=False) if narrow else nullcontext()
    with torch.no_grad(), autocast, in_float32(teacher):
        seen = windows.to(weight.device)
        target = teacher(seen, use_cache=False).logits.to(logits.device)
    return _DistillationLoss.apply(logits, target, windows, share)  # type: ignore[no-untyped-call,no-any-return]


class _DistillationLoss(torch.autograd.Function):
    """The loss of logits (n, tokens, vocabulary), with its gradient in place of `target`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, windows: Tensor, share: float) -> Tensor:
        """The loss; `target` (n, tokens, vocabulary) is overwritten where a gradient is asked."""
        target, positions = target.to(logits.dtype), windows[:, 1:].numel()
        rows = max(1, _CHUNK // logits.shape[-1])
        total = torch.zeros((), device=logits.device)
        for window, student, goal in zip(windows, logits, target, strict=True):
            for first in range(0, len(window) - 1, rows):
                chunk = slice(first, min(first + rows, len(window) - 1))
                labels = window[1:][chunk, None]
                log_p = student[chunk].float().log_softmax(-1)
                log_t = goal[chunk].float().log_softmax(-1)
                p, t = log_p.exp(), log_t.exp()
                divergence = (t * (log_t - log_p)).sum()
                text_loss = -log_p.gather(-1, labels).sum()
                total += share * divergence + (1 - share) * text_loss
                if ctx.needs_input_grad[0]:
                    # The gradients of both losses are the predictions less their targets.
                    gradient = p.sub_(t, alpha=share)
                    gradient.scatter_add_(
                        -1, labels, torch.full_like(labels, share - 1, dtype=p.dtype)
                    )
                    goal[chunk] = gradient / positions
            goal[-1] = 0
        ctx.gradient = target
        return total / positions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the logits; it is not kept, so a second call fails."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(scale), None, None, None


DISTILL = ModelStep("distill", check_memory, distillation)
