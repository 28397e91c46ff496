"""Every kind of statistic that calibration collects of a weight matrix, each defined once.

A new kind is one entry of `STATISTICS`. The passes over the model, the store on disk and the
pipelines handle kinds by name and know nothing else about them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

# A name of `STATISTICS`.
Kind = str

# The statistics of one matrix by kind, fp32. Beside those of `STATISTICS`, "cross" (in, in) is
# `2·X_denseᵀX / windows`, X_dense the input that the dense model gives the matrix at the same
# tokens: it exists only where a model that is being pruned runs beside the dense one.
MatrixStatistics = dict[Kind, Tensor]

GRADIENT_SCALE = 100.0


class ForwardStatistic:
    """A statistic that a forward pass collects, block after block."""


@dataclass(frozen=True)
class InputStatistic(ForwardStatistic):
    """A statistic of the tokens that enter a matrix.

    shape: of its sum for a matrix with that many input channels. add: folds tokens (n, in), fp32,
    into the sum in place. value: the statistic from the sum over that many windows; it may
    overwrite the sum.
    """

    shape: Callable[[int], tuple[int, int]]
    add: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class BlockStatistic(ForwardStatistic):
    """A statistic of a decoder block, the same for all of its matrices.

    of: a scalar of the input and the output (1, tokens, width) of one window. The statistic (1, 1)
    is the mean over the windows.
    """

    of: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ExpertStatistic(ForwardStatistic):
    """A statistic of one expert of a mixture, the same for all of its matrices.

    of: a value (n,) for each of the expert's tokens in a window, from their router weights (n,) and
    its outputs (n, width), fp32. The statistic (1, 1) is the mean over all tokens, −inf where no
    token reaches the expert. Matrices of no expert have none.
    """

    of: Callable[[Tensor, Tensor], Tensor]


class GradientStatistic:
    """A statistic that a backward pass collects."""


@dataclass(frozen=True)
class WeightGradientStatistic(GradientStatistic):
    """A statistic of the gradients of a weight matrix.

    add: folds the gradient (out, in) of one window's mean next-token loss, fp32 and times
    `GRADIENT_SCALE`, into the sum in place; it may overwrite the gradient. value: the statistic
    (out, in) from the sum, which it overwrites.
    """

    add: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OutputGradientStatistic(GradientStatistic):
    """A statistic of the gradients at the outputs of a matrix; its weights need no gradient.

    shape: of its sum for a matrix with that many output channels. add: folds the gradients
    (n, out) of one window's mean next-token loss at n tokens, fp32 and times `GRADIENT_SCALE`,
    into the sum in place. value: the statistic (out, 1) from the sum over that many windows.
    """

    shape: Callable[[int], tuple[int, int]]
    add: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, int], Tensor]


def _add_squares(total: Tensor, gradients: Tensor) -> Tensor:
    total[0] += gradients.square().sum(0)
    total[1] += len(gradients)
    return total


def _root_of_mean(total: Tensor, windows: int) -> Tensor:
    means = total[0] / total[1].clamp(min=1)
    return means.mul_(windows).sqrt_()[:, None]


STATISTICS: Mapping[Kind, ForwardStatistic | GradientStatistic] = MappingProxyType(
    {
        # (out, in), `sqrt(Σ_n (100·g_n)²)` over windows n (GBLM-Pruner, 2311.04902).
        "G": WeightGradientStatistic(
            add=lambda total, gradient: total.add_(gradient.square_()),
            value=lambda total: total.sqrt_(),
        ),
        # (1, in), `sqrt(mean over windows of Σ_tokens x²)` (Wanda, 2306.11695, eq. 1).
        "X": InputStatistic(
            shape=lambda width: (1, width),
            add=lambda total, tokens: total.add_(tokens.square().sum(0, keepdim=True)),
            value=lambda total, windows: (total / windows).sqrt(),
        ),
        # (out, 1), `sqrt(windows · mean over tokens of (100·dL/dy)²)`, y the output at a token, L
        # the mean loss of its window: the diagonal of the output factor of K-FAC (Martens & Grosse,
        # 1503.05671), by which LLM Surgeon (2312.17244) prunes language models. The gradient of a
        # weight is the sum over tokens of dL/dy_i · x_j. Where tokens, and the two factors, are
        # taken to be uncorrelated, the mean of its square is O_i²·X_j²: O·X stands to G as the
        # factored Fisher matrix stands to the Fisher matrix. Tokens are those that the matrix is
        # given, so that this holds for an expert too.
        "O": OutputGradientStatistic(
            shape=lambda height: (2, height), add=_add_squares, value=_root_of_mean
        ),
        # (in, in), `2·XᵀX / windows`, SparseGPT's Hessian (2301.00774).
        "gram": InputStatistic(
            shape=lambda width: (width, width),
            add=lambda total, tokens: total.addmm_(tokens.T, tokens),
            value=lambda total, windows: total.mul_(2 / windows),
        ),
        # (1, 1), the number of tokens whose input is not zero throughout: some mixtures give every
        # expert all tokens, and zeros in the place of the tokens of other experts.
        "tokens": InputStatistic(
            shape=lambda width: (1, 1),
            add=lambda total, tokens: total.add_(tokens.any(-1).sum()),
            value=lambda total, windows: total,
        ),
        # 1 − cos(input, output), the mean over all tokens: block influence (ShortGPT, Men et al.
        # 2024, 2403.03853, equation 1).
        "influence": BlockStatistic(
            of=lambda before, after: 1 - cosine_similarity(before, after, dim=-1).mean()
        ),
        # The mean over an expert's tokens of the router weight times the norm of its output: REAP
        # (Lasby et al. 2025, 2510.13999, equation 9).
        "reap": ExpertStatistic(of=lambda weights, outputs: weights * outputs.norm(dim=-1)),
    }
)


S = TypeVar("S", bound=ForwardStatistic | GradientStatistic)


def select(of: type[S], kinds: Iterable[Kind]) -> dict[Kind, S]:
    """The statistics among `kinds` that are instances of `of`, in the order of `STATISTICS`."""
    wanted = frozenset(kinds)
    return {
        kind: statistic
        for kind, statistic in STATISTICS.items()
        if kind in wanted and isinstance(statistic, of)
    }
