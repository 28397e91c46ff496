"""What a mask must look like: a share of the weights per comparison group, or N of every M."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import get_args

from pruner_zero.choices import Scope
from pruner_zero.errors import PrunerZeroError, did_you_mean

SCOPES: tuple[Scope, ...] = get_args(Scope)

_WORDS: dict[Scope, str] = {
    "row": "per row",
    "block": "per block",
    "matrix": "per matrix",
    "global": "global",
}


def pruned_count(weights: int, sparsity: float) -> int:
    """The zeros a comparison group of `weights` weights gets: floor(weights · sparsity).

    `sparsity` stands for the shortest decimal that names the float, the number the user
    typed: 100 weights at 0.29 give 29, where the float product 28.999… would give 28.
    Source: ours.
    """
    return math.floor(weights * Fraction(str(sparsity)))


@dataclass(frozen=True)
class Unstructured:
    """The lowest scores of every comparison group are pruned, wherever they lie.

    `sparsity` is the pruned share, in [0, 1). `scope` names the group: a `row` of the matrix
    (Wanda), a `block` of 128 columns of all rows (SparseGPT), the `matrix` (magnitude), or all
    matrices of the model (`global`). Raises PrunerZeroError for values outside these.
    """

    sparsity: float
    scope: Scope = "row"

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            percent = 1 < self.sparsity < 100
            example = f"{self.sparsity / 100:g} for {self.sparsity:g} %" if percent else "0.5"
            raise PrunerZeroError(
                f"sparsity {self.sparsity} is outside [0, 1): set it to the pruned share, "
                f"such as {example}"
            )
        if self.scope not in SCOPES:
            raise PrunerZeroError(
                f"unknown scope '{self.scope}': {did_you_mean(str(self.scope), SCOPES)}"
            )

    def __str__(self) -> str:
        percent = (Decimal(str(self.sparsity)) * 100).normalize()
        return f"{percent:f}% {_WORDS[self.scope]}"


@dataclass(frozen=True)
class SemiStructured:
    """N zeros in each group of M consecutive weights along the input dimension.

    This is the pruning papers' meaning; hardware papers name the kept weights instead.
    Any 0 < N < M. Raises PrunerZeroError for other values.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PrunerZeroError(
                f"pattern {self.n}:{self.m} must prune some of each group but not all: "
                "choose N and M with 0 < N < M, such as 2:4"
            )

    @property
    def sparsity(self) -> float:
        """The pruned share, N / M."""
        return self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Pattern = Unstructured | SemiStructured


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` names: "2:4", "0.5", "50%", "50% per row", "0.5 global".

    Reads whatever `str()` of a pattern writes; a share without a scope is per row.
    Raises PrunerZeroError for anything else. Source: ours.
    """
    stripped = text.strip()
    if groups := re.fullmatch(r"(\d+)\s*:\s*(\d+)", stripped):
        return SemiStructured(int(groups[1]), int(groups[2]))
    share = re.fullmatch(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*(%?)(?:\s+(.+))?", stripped)
    if share is None:
        raise PrunerZeroError(
            f"pattern '{text}' cannot be read: write N:M such as 2:4, or a share such as "
            "0.5 or '50% per row'"
        )
    number, percent, words = share.groups()
    sparsity = float(Decimal(number) / (100 if percent else 1))
    name = (words or "row").removeprefix("per ")
    scope = next((known for known in SCOPES if known == name), None)
    if scope is None:
        raise PrunerZeroError(f"unknown scope '{name}' in '{text}': {did_you_mean(name, SCOPES)}")
    return Unstructured(sparsity, scope)


def check_width(in_features: int, pattern: Pattern, name: str) -> None:
    """Refuse a matrix whose input width the N:M groups do not fill.

    `name` is the module's. Raises PrunerZeroError; meant to run before any work.
    """
    if isinstance(pattern, SemiStructured) and in_features % pattern.m:
        raise PrunerZeroError(
            f"input width {in_features} of {name} is not divisible by {pattern.m}: "
            "choose another M or exclude the matrix"
        )
