"""Sums over the tokens that enter the matrices of one block, and the statistics they make."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruner_zero.calibration.statistics import InputStatistic, Kind, MatrixStatistics
from pruner_zero.models import Matrix


@dataclass
class InputSums:
    """Sums over the windows seen so far, fp32.

    statistics: what is collected, by kind. owner: for each matrix that a token of this model or of
    the dense model reached, the name of the matrix that holds its sums: matrices with the very same
    input tensor share them.
    sums: by kind and owner. crosses: (in, in), `X_denseᵀX` by owner. uncrossed: owners whose tokens
    differ from the dense model's, as an expert's tokens can, which its router chooses.
    """

    statistics: Mapping[Kind, InputStatistic]
    owner: dict[str, str] = field(default_factory=dict)
    sums: dict[Kind, dict[str, Tensor]] = field(default_factory=dict)
    crosses: dict[str, Tensor] = field(default_factory=dict)
    uncrossed: set[str] = field(default_factory=set)
    _last: tuple[Tensor, str] | None = None
    _dense: dict[str, Tensor] | None = None
    _is_dense: bool = False

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Keep the inputs seen meanwhile as the dense model's, for products with the next ones."""
        self._dense, self._is_dense = {}, True
        yield
        self._is_dense, self._last = False, None

    def add(self, name: str, inputs: Tensor) -> None:
        """Add the inputs (…, in), of any dtype, of the matrix `name` to its sums."""
        if name not in self.owner:
            shared = self._last is not None and self._last[0] is inputs
            self.owner[name] = self.owner[self._last[1]] if shared and self._last else name
        self._last = (inputs, name)
        if self.owner[name] != name:
            return
        tokens = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if self._is_dense and self._dense is not None:
            self._dense[name] = tokens
            return
        for kind, statistic in self.statistics.items():
            sums = self.sums.setdefault(kind, {})
            if name not in sums:
                sums[name] = tokens.new_zeros(statistic.shape(tokens.shape[1]))
            statistic.add(sums[name], tokens)
        if self._dense is not None:
            self._cross(name, tokens)

    def end_window(self) -> None:
        """Release the inputs of the window; the next window has other tensors."""
        self._last = self._dense = None

    def result(self, matrices: Sequence[Matrix], windows: int) -> dict[str, MatrixStatistics]:
        """The statistics by matrix name over that many `windows`; the sums are used up.

        A matrix that no token reached (an expert that was never chosen) has zeros, also where a
        token of the dense model reached it.
        """
        by_owner: dict[str, MatrixStatistics] = {}
        results = {}
        for matrix in matrices:
            owner = self.owner.get(matrix.name, matrix.name)
            if owner not in by_owner:
                by_owner[owner] = self._values(owner, matrix, windows)
            results[matrix.name] = by_owner[owner]
        return results

    def _cross(self, name: str, tokens: Tensor) -> None:
        dense = self._dense.pop(name, None) if self._dense else None
        if dense is None or dense.shape != tokens.shape:
            self.uncrossed.add(name)
            return
        if name not in self.crosses:
            self.crosses[name] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
        self.crosses[name].addmm_(dense.T, tokens)

    def _values(self, owner: str, matrix: Matrix, windows: int) -> MatrixStatistics:
        width, device = matrix.weight.shape[1], matrix.weight.device
        values = {}
        for kind, statistic in self.statistics.items():
            total = self.sums.get(kind, {}).pop(owner, None)
            if total is None:
                total = torch.zeros(statistic.shape(width), device=device)
            values[kind] = statistic.value(total, windows)
        cross = self.crosses.pop(owner, None)
        if cross is not None and owner not in self.uncrossed and matrix.expert is None:
            values["cross"] = cross.mul_(2 / windows)
        return values
