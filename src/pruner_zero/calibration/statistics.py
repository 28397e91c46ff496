"""Every kind of statistic that calibration collects of a weight matrix, each defined once.

A new kind is one entry of `STATISTICS`. The passes over the model, the store on disk and the
pipelines handle kinds by name and know nothing else about them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, TypeVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

# A name of `STATISTICS`.
Kind = str

# The statistics of one matrix by kind, fp32.
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


# Tokens that statistics of a row or a matrix are of. Masks by three times as many are hardly better
# (benchmarks/why.md).
_FEW = 8192


class GradientStatistic:
    """A statistic that a backward pass collects.

    drawn: whether its loss is the sum over a window of cross entropies with labels that the model
    draws from its own predictions, and not the mean with the next tokens of the text. tokens: it is
    of the first windows that hold as many; None for all windows.
    """

    drawn: ClassVar[bool] = False
    tokens: int | None = None


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
    tokens: int | None = _FEW


class PriceStatistic(GradientStatistic):
    """By how much the predictions of the model diverge if a unit goes, in nats per token.

    To second order that is half of the mean over tokens of s², s the sum over the unit's values of
    the value times the gradient of the loss there, since labels drawn from the predictions make the
    mean of squared gradients the Fisher information. The first tokens of a window count too: the
    channels that make their massive activations are worth little anywhere else, and without them
    the model breaks (benchmarks/units.md).
    Source: Fisher pruning (Theis et al. 2018, 1801.05787), which finds the same for the feature
    maps of images; Kwon et al. (2022, 2204.09656) take heads and channels of transformers as units,
    Liu et al. (2021, 2108.00708) the sum over what only goes together. They take the labels of the
    data, and the gradient of a whole image or text. Here labels are drawn, and squares are of
    single tokens.
    """

    drawn = True


@dataclass(frozen=True)
class InputPriceStatistic(PriceStatistic):
    """The price of units of the inputs of a matrix, as this matrix alone takes them up.

    whole: whether all inputs are one unit, (1, 1); else a unit is an input channel, or a slice of
    them that only goes together, whose price is spread equally over its columns: (1, in).
    Tokens that other experts serve count as zeros.
    """

    whole: bool


@dataclass(frozen=True)
class BlockPriceStatistic(PriceStatistic):
    """The price of what a decoder block adds to its input, (1, 1), the same for its matrices."""


@dataclass(frozen=True)
class MaskPriceStatistic(GradientStatistic):
    """The price of zeros in a matrix, in nats per token and weight, (1, 1), by a pilot mask.

    Half of the square of the mean over tokens of |s|, over the number of weights: s is d · y, y
    what the output lacks without the half of each row that has the lowest |W|·X, d the gradient of
    the loss there. The mean of s² is the Fisher price of that half; the square of the mean of |s|
    follows single tokens less and gives better shares, and labels of the text are level with labels
    that the model draws (benchmarks/why.md).
    Source: Taylor expansions of the loss (Molchanov et al. 2019, 1906.10771) and Fisher pruning
    (Theis et al. 2018, 1801.05787) take single weights or units; here all zeros of a matrix go
    together.
    """

    tokens: int | None = _FEW


def _add_squares(total: Tensor, gradients: Tensor) -> Tensor:
    total[0] += gradients.square().sum(0)
    total[1] += len(gradients)
    return total


def _root_of_mean(total: Tensor, windows: int) -> Tensor:
    means = total[0] / total[1].clamp(min=1)
    return means.mul_(windows).sqrt_()[:, None]


# Columns of a gram that are computed together: of 8960, half of the products take 0.58 of the time.
_COLUMNS = 1024


def _add_upper(total: Tensor, tokens: Tensor) -> Tensor:
    """Add XᵀX, of blocks on the diagonal and right of it alone: half of the products."""
    for first in range(0, len(total), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        total[part, first:].addmm_(tokens[:, part].T, tokens[:, first:])
    return total


def _both_triangles(total: Tensor) -> Tensor:
    """`total` (in, in) with what `_add_upper` left out, in place."""
    for first in range(_COLUMNS, len(total), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        total[part, :first] = total[:first, part].T
    return total


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
        # (1, in), so that a sum over the columns of a unit is its price, also for a key-value head
        # with its query heads, where the model says which they are.
        "F": InputPriceStatistic(whole=False),
        # The price of the whole product of a matrix: of an expert at the matrix that gives its
        # outputs, of attention or an MLP at theirs.
        "matrix_price": InputPriceStatistic(whole=True),
        "block_price": BlockPriceStatistic(),
        # It needs X, of the same windows.
        "P": MaskPriceStatistic(),
        # (in, in), `2·XᵀX / windows`, SparseGPT's Hessian (2301.00774).
        "gram": InputStatistic(
            shape=lambda width: (width, width),
            add=_add_upper,
            value=lambda total, windows: _both_triangles(total).mul_(2 / windows),
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


def windows_needed(statistics: Mapping[Kind, GradientStatistic], windows: int, seqlen: int) -> int:
    """How many of so many `windows` the gradients are needed of, the first ones.

    statistics: of as many tokens each, as `by_loss` groups them.
    """
    tokens = next(iter(statistics.values())).tokens
    return windows if tokens is None else min(windows, -(-tokens // seqlen))


def by_loss(kinds: Iterable[Kind]) -> list[dict[Kind, GradientStatistic]]:
    """The statistics of gradients among `kinds`, those of the same loss and tokens together."""
    groups: dict[object, dict[Kind, GradientStatistic]] = {}
    for kind, statistic in select(GradientStatistic, kinds).items():
        groups.setdefault((statistic.drawn, statistic.tokens), {})[kind] = statistic
    return list(groups.values())
