"""How the loss answers to each weight: the statistic G, by backward."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix, next_token_loss
from pruner_zero.progress import SILENT, Progress

GradientNorm = Literal["l2", "l1"]

GRADIENT_SCALE = 100.0


def collect_gradients(
    model: nn.Module,
    matrices: Sequence[Matrix],
    windows: Tensor,
    *,
    norm: GradientNorm = "l2",
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """G of every matrix over `windows` (n, tokens), fp32, by matrix name, each (out, in).

    "l2": `sqrt(Σ_n (100·g_n)²)`, "l1": `Σ_n |100·g_n|`, g_n the gradient of the mean
    next-token loss of window n (GBLM-Pruner, 2311.04902; Pruner-Zero, 2406.02924).
    A gradient is folded in and freed as soon as backward has it. Raises PrunerZeroError on
    float16 weights, whose gradients vanish, and on a gradient that is not finite.
    """
    parameters = {matrix.parameter_name: matrix.parameter for matrix in matrices}
    if any(parameter.dtype == torch.float16 for parameter in parameters.values()):
        raise PrunerZeroError(
            "gradients in float16 vanish: choose --dtype bfloat16 or float32, or a metric without G"
        )
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def fold(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float().mul_(GRADIENT_SCALE)
        sums[name] += gradient.square_() if norm == "l2" else gradient.abs_()
        parameter.grad = None

    with torch.enable_grad(), _only_these_learn(model, parameters.values()), ExitStack() as stack:
        for name, parameter in parameters.items():
            handle = parameter.register_post_accumulate_grad_hook(
                lambda parameter, name=name: fold(name, parameter)
            )
            stack.callback(handle.remove)
        for window in progress.track(windows, "gradients", len(windows)):
            next_token_loss(model, window[None]).backward()
    if norm == "l2":
        for total in sums.values():
            total.sqrt_()
    found = {matrix.name: matrix.view(sums[matrix.parameter_name]) for matrix in matrices}
    for name, G in found.items():
        if not torch.isfinite(G).all():
            raise PrunerZeroError(
                f"the gradient of {name} is not finite: check the weights or choose --dtype float32"
            )
    return found


@contextmanager
def _only_these_learn(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Restrict gradients to `parameters`; restore every flag and gradient afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in parameters}
    for parameter, _, _ in before:
        parameter.requires_grad_(id(parameter) in chosen)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, learns, gradient in before:
            parameter.requires_grad_(learns)
            parameter.grad = gradient
