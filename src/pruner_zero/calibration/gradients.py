"""How the loss answers to each weight: the statistic G, by backward."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix, next_token_loss
from pruner_zero.progress import SILENT, Progress

GRADIENT_SCALE = 100.0


def collect_gradients(
    model: nn.Module,
    matrices: Sequence[Matrix],
    windows: Tensor,
    *,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """G of every matrix over `windows` (n, tokens), fp32, by matrix name, each (out, in).

    `sqrt(Σ_n (100·g_n)²)`, g_n the gradient of the mean next-token loss of window n
    (GBLM-Pruner, 2311.04902; Pruner-Zero, 2406.02924).
    Raises PrunerZeroError on float16 weights, whose gradients vanish, and on a gradient that
    is not finite.
    """
    check_gradients(matrices)
    sums = GradientSums(matrices)
    with sums.collecting(model):
        for window in progress.track(windows, "gradients", len(windows)):
            next_token_loss(model, window[None]).backward()
    return sums.result()


def gradient_windows(windows: Tensor, seqlen: int | None) -> Tensor:
    """The windows that G sums over: `windows` (n, tokens) cut into pieces of `seqlen` tokens.

    More gradients to square from the same tokens, each of less context: that helps some metrics
    and not others (ours; benchmarks/gradients.md). Whole windows where None, as in the papers.
    `seqlen` divides the tokens of a window.
    """
    return windows if seqlen is None else windows.reshape(-1, seqlen)


class GradientSums:
    """G of `matrices`, in the making: a sum over windows for each parameter that holds them."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.matrices = matrices
        self.parameters = {matrix.parameter_name: matrix.parameter for matrix in matrices}
        self.sums = {
            name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
            for name, p in self.parameters.items()
        }

    @contextmanager
    def collecting(self, module: nn.Module) -> Iterator[None]:
        """Fold in what every backward through `module`, which holds all the matrices, brings.

        A gradient is freed as soon as backward has it.
        """
        with (
            torch.enable_grad(),
            only_these_learn(module, self.parameters.values()),
            ExitStack() as stack,
        ):
            for name, parameter in self.parameters.items():
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda parameter, name=name: self._fold(name, parameter)
                )
                stack.callback(handle.remove)
            yield

    def result(self) -> dict[str, Tensor]:
        """G by matrix name; nothing can be folded in any more. Raises PrunerZeroError on NaN."""
        for total in self.sums.values():
            total.sqrt_()
        found = {
            matrix.name: matrix.view(self.sums[matrix.parameter_name]) for matrix in self.matrices
        }
        for name, G in found.items():
            if not torch.isfinite(G).all():
                raise PrunerZeroError(
                    f"the gradient of {name} is not finite: check the weights "
                    "or choose --dtype float32"
                )
        return found

    def _fold(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float().mul_(GRADIENT_SCALE)
        self.sums[name] += gradient.square_()
        parameter.grad = None


def check_gradients(matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError where the gradients of `matrices` could not be trusted."""
    if any(matrix.parameter.dtype == torch.float16 for matrix in matrices):
        raise PrunerZeroError(
            "gradients in float16 vanish: choose --dtype bfloat16 or float32, or a metric without G"
        )


@contextmanager
def only_these_learn(module: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Restrict gradients to `parameters`; restore every flag and gradient afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
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
