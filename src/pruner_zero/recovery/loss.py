"""The loss of a teacher that is in memory, for `recover`."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pruner_zero.models.loss import in_float32

# The number of logits processed at a time: larger temporary tensors are slower, and with a
# vocabulary of 262,144 and 1024 tokens each of them would take a gigabyte.
_CHUNK = 2**22


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
