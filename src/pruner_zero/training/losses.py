"""The losses of a training, with their gradients: of a text, and of a text beside a teacher."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pruner_zero.models.block_calls import run_blocks
from pruner_zero.models.next_token import in_float32
from pruner_zero.text.translation import Translation
from pruner_zero.training.targets import Target, divergence, target_of
from pruner_zero.training.train import Loss


def text_loss(windows: Tensor) -> Loss:
    """The next-token loss of `windows` (n, tokens)."""
    labels = windows[:, 1:].reshape(-1, 1)

    def loss(positions: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        # A copy, which becomes the gradient.
        scores, goal = logits.detach().to(torch.float32, copy=True), labels[positions]
        goal = goal.to(scores.device)
        total = scores.logsumexp(-1, keepdim=True)
        value = (total - scores.gather(-1, goal)).sum()
        gradient = scores.sub_(total).exp_()
        return value, gradient.scatter_add_(-1, goal, -torch.ones_like(total))

    return loss


def taught_loss(
    windows: Tensor, teacher: nn.Module, share: float, translation: Translation | None = None
) -> Loss:
    """`share` · KL(teacher ‖ model) + (1 − `share`) · the next-token loss of `windows`.

    translation: from the tokens of `windows` to those of the model, where it has fewer; both
    losses are then of its tokens.
    """
    target = _asked(teacher, windows, translation)
    of_text = text_loss(windows if translation is None else translation.windows(windows)[0])

    def loss(positions: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = divergence(logits, target.part(positions))
        if share == 1:
            return value, gradient
        of_label, towards_label = of_text(positions, logits)
        return torch.lerp(of_label, value, share), towards_label.lerp_(gradient, share)

    return loss


@torch.no_grad()
def _asked(teacher: nn.Module, windows: Tensor, translation: Translation | None = None) -> Target:
    """The predictions of the teacher in memory for `windows`."""
    weight = next(teacher.parameters())
    # Autocast refuses operations on a float16 and a bfloat16 tensor.
    narrow = weight.dtype == torch.float16
    autocast = torch.autocast(weight.device.type, enabled=False) if narrow else nullcontext()
    seen = windows.to(weight.device)
    with autocast, in_float32(teacher):
        return target_of(teacher, seen, *run_blocks(teacher, seen), translation)
