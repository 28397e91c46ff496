"""The statistics of matrices as pruning uses them: matrices with one input share one Hessian."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from pruner_zero.calibration.statistics import (
    ForwardStatistic,
    GradientStatistic,
    Kind,
    MatrixStatistics,
    select,
)
from pruner_zero.calibration.store import StatisticsStore
from pruner_zero.models.structure import Matrix
from pruner_zero.sparsity.hessian import Hessian, shrinkage_for

# The weight of the dense model's outputs in the target of asymmetric steps. A weight of 1 diverges
# on real models: part of the loss of earlier blocks cannot be computed from the remaining inputs,
# and the errors of fitting it add up block after block (benchmarks/decisions.md).
ASYMMETRY = 0.25

# The statistics that the Hessian is made of.
_OF_HESSIAN = frozenset({"gram", "cross", "tokens"})


@dataclass(frozen=True)
class Statistics:
    """The statistics of one matrix that were collected.

    values: by kind, without the Gram matrix and its tokens, which the Hessian has. hessian: of the
    input, one object for all matrices that have the same input; it has a target where steps aim at
    the dense outputs.
    """

    values: MatrixStatistics = field(default_factory=dict)
    hessian: Hessian | None = None

    def terminals(self, names: Iterable[str], weight: Tensor) -> dict[str, Tensor]:
        """The values of the terminals of these names, fp32.

        weight: (out, in) fp32, signed. A terminal whose statistic was not collected is left out.
        """
        wanted = set(names)
        values = {name: value for name, value in self.values.items() if name in wanted}
        if "W" in wanted:
            values["W"] = weight.abs()
        if "S" in wanted:
            values["S"] = weight
        if "D" in wanted and self.hessian is not None:
            values["D"] = self.hessian.diagonal
        return values

    def silent(self) -> list[str]:
        """The names of the statistics that are zero throughout."""
        gram = {} if self.hessian is None else {"XᵀX": self.hessian.gram}
        return [name for name, value in {**self.values, **gram}.items() if not value.any()]


def block_statistics(
    collected: dict[str, MatrixStatistics], damping: float
) -> dict[str, Statistics]:
    """By matrix name, what was collected of the inputs of one block; `collected` is emptied.

    Matrices that share one `MatrixStatistics` share one Hessian, which `damping` damps, and which
    is shrunk where "tokens" were collected.
    """
    shared: dict[int, Statistics] = {}
    statistics = {}
    for name, values in collected.items():
        if id(values) not in shared:
            rest = {kind: value for kind, value in values.items() if kind not in _OF_HESSIAN}
            shared[id(values)] = Statistics(rest, _hessian(values, damping, name))
        statistics[name] = shared[id(values)]
    collected.clear()
    return statistics


def _hessian(values: MatrixStatistics, damping: float, name: str) -> Hessian | None:
    gram, cross = values.get("gram"), values.get("cross")
    if gram is None:
        return None
    target = None if cross is None else gram.lerp(cross, ASYMMETRY)
    tokens = values.get("tokens")
    shrinkage = 0.0 if tokens is None else shrinkage_for(len(gram), tokens.item())
    return Hessian(gram, target, damping, name, shrinkage)


class DenseStatistics:
    """Reads the dense model's statistics of one matrix after the other.

    The last Hessian is kept, for the next matrix with its input. damping: as `block_statistics`
    takes it.
    """

    def __init__(self, store: StatisticsStore, damping: float) -> None:
        self.store = store
        self.damping = damping
        self._last: tuple[tuple[str, frozenset[Kind]], Hessian | None] | None = None

    def read(self, matrix: Matrix, kinds: Collection[Kind]) -> Statistics:
        """The statistics `kinds` of one matrix, on its device. Raises PrunerZeroError."""
        ordered = [*select(ForwardStatistic, kinds), *select(GradientStatistic, kinds)]
        values = {kind: self._read(kind, matrix) for kind in ordered if kind not in _OF_HESSIAN}
        return Statistics(values, self._hessian(matrix, kinds) if "gram" in kinds else None)

    def _read(self, kind: Kind, matrix: Matrix) -> Tensor:
        name, device = matrix.name, matrix.weight.device
        return self.store.read(kind, matrix.block, [name], device=device)[name]

    def _hessian(self, matrix: Matrix, kinds: Collection[Kind]) -> Hessian | None:
        read = _OF_HESSIAN & set(kinds)
        key = self.store.owners("gram", matrix.block)[matrix.name], read
        if self._last is None or self._last[0] != key:
            # Freed before the next one, which is as large, is read.
            self._last = None
            values = {kind: self._read(kind, matrix) for kind in read}
            self._last = key, _hessian(values, self.damping, matrix.name)
        return self._last[1]
