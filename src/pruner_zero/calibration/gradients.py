"""Backward: the statistics of the gradients of weights, for a model that is in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pruner_zero.calibration.statistics import (
    GRADIENT_SCALE,
    GradientStatistic,
    Kind,
    MatrixStatistics,
    select,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix, next_token_loss, parameters_of
from pruner_zero.progress import SILENT, Progress


def collect_gradients(
    model: nn.Module,
    matrices: Sequence[Matrix],
    windows: Tensor,
    kinds: Iterable[Kind] = ("G",),
    *,
    progress: Progress = SILENT,
) -> dict[str, MatrixStatistics]:
    """Statistics of the gradients over `windows` (n, tokens), by matrix name.

    Raises PrunerZeroError on float16 weights, whose gradients vanish, and on a gradient that
    is not finite.
    """
    check_gradients(matrices)
    sums = GradientSums(matrices, select(GradientStatistic, kinds))
    with sums.collecting(model):
        for window in progress.track(windows, "gradients", len(windows)):
            next_token_loss(model, window[None]).backward()
    return sums.result()


def gradient_windows(windows: Tensor, seqlen: int | None) -> Tensor:
    """The windows that gradients are taken of: `windows` (n, tokens) in pieces of `seqlen` tokens.

    Pieces give more gradients to square from the same tokens, each of less context: that helps
    some metrics and not others (ours; benchmarks/gradients.md). Whole windows where None, as in
    the papers. `seqlen` divides the tokens of a window.
    """
    return windows if seqlen is None else windows.reshape(-1, seqlen)


class GradientSums:
    """Sums over windows of the gradients of `matrices`, one for each parameter and statistic."""

    def __init__(
        self, matrices: Sequence[Matrix], statistics: Mapping[Kind, GradientStatistic]
    ) -> None:
        self.matrices = matrices
        self.statistics = statistics
        self.parameters = parameters_of(matrices)
        self.sums = {
            kind: {
                name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
                for name, p in self.parameters.items()
            }
            for kind in statistics
        }

    def collecting(self, module: nn.Module) -> AbstractContextManager[None]:
        """Fold in the gradients of every backward pass through `module`, which has all matrices."""
        folds = {p: partial(self._fold, name) for name, p in self.parameters.items()}
        return gradients_to(folds, module)

    def result(self) -> dict[str, MatrixStatistics]:
        """The statistics by matrix name; the sums are used up. Raises PrunerZeroError on NaN."""
        results: dict[str, MatrixStatistics] = {matrix.name: {} for matrix in self.matrices}
        for kind, statistic in self.statistics.items():
            for total in self.sums[kind].values():
                statistic.value(total)
            for matrix in self.matrices:
                value = matrix.view(self.sums[kind][matrix.parameter_name])
                if not torch.isfinite(value).all():
                    raise PrunerZeroError(
                        f"the gradient of {matrix.name} is not finite: check the weights "
                        "or choose --dtype float32"
                    )
                results[matrix.name][kind] = value
        return results

    def _fold(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.float().mul_(GRADIENT_SCALE)
        *earlier, last = self.statistics
        for kind in earlier:
            self.statistics[kind].add(self.sums[kind][name], gradient.clone())
        self.statistics[last].add(self.sums[last][name], gradient)


def check_gradients(matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError where the gradients of `matrices` could not be trusted."""
    if any(matrix.parameter.dtype == torch.float16 for matrix in matrices):
        raise PrunerZeroError(
            "gradients in float16 vanish: choose --dtype bfloat16 or float32, or a metric without G"
        )


@contextmanager
def gradients_to(
    receivers: Mapping[nn.Parameter, Callable[[Tensor], None]], module: nn.Module
) -> Iterator[None]:
    """Within the context, each backward pass through `module` gives gradients to `receivers`.

    receivers: by parameter, called with its gradient, which is freed afterwards. No other parameter
    gets a gradient.
    """

    @torch.no_grad()
    def give(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        receivers[parameter](gradient)

    with torch.enable_grad(), only_these_learn(module, receivers), ExitStack() as stack:
        for parameter in receivers:
            stack.callback(parameter.register_post_accumulate_grad_hook(give).remove)
        yield


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
