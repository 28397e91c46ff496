"""Sums over the tokens that enter the matrices of one block, and the statistics they make."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruner_zero.models import Matrix


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of the input of one matrix over all calibration windows, fp32.

    X: (1, in), `sqrt(mean over windows of Σ_tokens x²)`, Wanda's norm (2306.11695, eq. 1).
    gram: (in, in), `2XᵀX / windows`, SparseGPT's Hessian (2301.00774), where it was asked for.
    cross: (in, in), `2X_denseᵀX / windows`, X_dense what the dense model gives at the same
    tokens, where that is known.
    """

    X: Tensor
    gram: Tensor | None = None
    cross: Tensor | None = None


@dataclass
class InputSums:
    """What was summed over some windows, fp32.

    owner: for each matrix that a token reached, the one under whose name its sums are:
    matrices that are fed the very same tensor share them. squares: (1, in), `Σ_tokens x²`.
    grams: (in, in), `XᵀX`, where asked for. crosses: (in, in), `X_denseᵀX`.
    uncrossed: inputs whose tokens are not those of the dense model: an expert's are its
    router's choice.
    """

    gram: bool
    owner: dict[str, str] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    grams: dict[str, Tensor] = field(default_factory=dict)
    crosses: dict[str, Tensor] = field(default_factory=dict)
    uncrossed: set[str] = field(default_factory=set)

    def statistics(self, matrices: Sequence[Matrix], windows: int) -> dict[str, InputStatistics]:
        """The statistics by matrix name, over as many `windows` as were summed. It uses up grams.

        A matrix that no token reached (an expert that was never chosen) has X = 0.
        """
        results: dict[str, InputStatistics] = {}
        found = {}
        for matrix in matrices:
            owner = self.owner.get(matrix.name)
            if owner is None:
                found[matrix.name] = self._unreached(matrix)
                continue
            if owner not in results:
                results[owner] = self._result(owner, matrix, windows)
            found[matrix.name] = results[owner]
        return found

    def _unreached(self, matrix: Matrix) -> InputStatistics:
        width, device = matrix.weight.shape[1], matrix.weight.device
        gram = torch.zeros(width, width, device=device) if self.gram else None
        return InputStatistics(torch.zeros(1, width, device=device), gram)

    def _result(self, owner: str, matrix: Matrix, windows: int) -> InputStatistics:
        gram = self.grams.pop(owner).mul_(2 / windows) if self.gram else None
        cross = self.crosses.pop(owner, None)
        if cross is not None:
            routed = owner in self.uncrossed or matrix.expert is not None
            cross = None if routed else cross.mul_(2 / windows)
        return InputStatistics((self.squares[owner] / windows).sqrt(), gram, cross)
