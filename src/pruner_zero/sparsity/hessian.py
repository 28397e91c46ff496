"""The Hessian of one input: the damped XᵀX, and its factors."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError


@dataclass(frozen=True, eq=False)
class Hessian:
    """Second moments of one input, shared by all matrices that have this input.

    gram: (in, in), XᵀX or any positive multiple of it, held in float32. damping: the share of the
    mean diagonal that is added to the diagonal. shrinkage: the share of each diagonal element that
    is added to it (`shrinkage_for`). Each factor is computed when first asked for, once. Raises
    PrunerZeroError naming the matrix `name` where a number is not finite, for a damping outside
    (0, 1], and, when it is factored, where no damping up to 1 makes it positive definite.
    Source: Frantar & Alistarh 2023 (2301.00774), section 3, without shrinkage.
    """

    gram: Tensor
    damping: float = 0.01
    name: str = "matrix"
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise PrunerZeroError(
                f"damping {self.damping} is outside (0, 1]: set it to 0.01 or near"
            )
        if not self.gram.isfinite().all():
            raise PrunerZeroError(
                f"XᵀX of {self.name} is not finite: check its calibration inputs, or exclude the "
                "matrix"
            )
        object.__setattr__(self, "gram", self.gram.detach().float())

    @property
    def used_damping(self) -> float:
        """`damping`, raised tenfold, up to 1, until the Cholesky factorisation succeeds."""
        return self._factored[0]

    @cached_property
    def diagonal(self) -> Tensor:
        """The terminal `D`: (1, in) float32, positive, the diagonal of `inverse_factor`.

        A channel that was never active gets the largest value, that of the damping alone, so that
        its weights are pruned first by SparseGPT's score W² / D², as SparseGPT zeroes them.
        """
        damping, diagonal = self._factored
        channels = self.gram.diagonal()
        floor = damping * channels.mean()
        dead = torch.where(floor > 0, floor.rsqrt(), 1.0)
        return torch.where(channels == 0, dead, diagonal)[None]

    @cached_property
    def inverse_factor(self) -> Tensor:
        """U (in, in), upper triangular, UᵀU = H⁻¹ for H = `damped()`.

        Frantar & Alistarh invert H and factor the inverse; here H with rows and columns reversed is
        factored once, and the factor inverted.
        """
        L, *factored = self._reversed_cholesky()
        self.__dict__.setdefault("_factored", factored)
        identity = torch.eye(len(L), dtype=L.dtype, device=L.device)
        inverse: Tensor = torch.linalg.solve_triangular(L, identity, upper=False)
        return inverse.flip(0, 1)

    @cached_property
    def inverse(self) -> Tensor:
        """H⁻¹ (in, in) for H = `damped()`, kept for many removals of columns."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.damped()))

    def damped(self) -> Tensor:
        """H (in, in): the gram, damped and shrunk, and 1 more where a channel is all zero."""
        H = self.gram.clone()
        H.diagonal().copy_(self._raised(self.gram.diagonal(), self.used_damping))
        return H

    def _raised(self, diagonal: Tensor, damping: float) -> Tensor:
        """The diagonal (in,) of H for that of the gram."""
        raised = diagonal * (1 + self.shrinkage) + damping * diagonal.mean()
        return raised + (diagonal == 0)

    def forget(self) -> None:
        """Free `inverse_factor`, the one large factor. It is computed again when asked for."""
        self.__dict__.pop("inverse_factor", None)

    @cached_property
    def _factored(self) -> tuple[float, Tensor]:
        """The damping that holds and the diagonal (in,) of `inverse_factor`."""
        return self._reversed_cholesky()[1:]

    def _reversed_cholesky(self) -> tuple[Tensor, float, Tensor]:
        """The lower factor of the damped gram with rows and columns reversed; `_factored`."""
        damped = self.gram.flip(0, 1)
        diagonal = damped.diagonal().clone()
        damping = self.damping
        while True:
            damped.diagonal().copy_(self._raised(diagonal, damping))
            L, failed = torch.linalg.cholesky_ex(damped)
            if not failed and L.diagonal().isfinite().all():
                # `inverse_factor` is the inverse of L, reversed.
                return L, damping, L.diagonal().flip(0).reciprocal()
            if damping >= 1:
                raise PrunerZeroError(
                    f"XᵀX of {self.name} is not positive definite even at damping 1: "
                    "give more calibration windows, or exclude the matrix"
                )
            damping = min(10 * damping, 1.0)


def shrinkage_for(inputs: int, tokens: float) -> float:
    """The shrinkage of a gram of that many `inputs`, summed over that many `tokens`, or one.

    Where tokens are few beside the inputs, least squares fit the noise in the products of different
    channels. The factor was chosen by errors on held-out windows (benchmarks/decisions.md).
    Source: shrinking an estimated covariance towards its diagonal, Schäfer & Strimmer 2005
    (10.2202/1544-6115.1175); that pruning by reconstruction overfits its calibration text, Shin et
    al. 2024 (2406.15524). The amount is ours.
    """
    return 2 * inputs / max(1, tokens)
