"""Records of the pruned matrices."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pruner_zero.models import common_kind
from pruner_zero.table import Tabular


@dataclass(frozen=True)
class MatrixRecord:
    """One pruned matrix: how many of its weights are zero, and how it was updated.

    damping: the share of the mean diagonal added to the Hessian, where an update was made.
    note: a remark for the user, such as a fallback.
    """

    name: str
    block: int
    shape: tuple[int, int]
    zeros: int
    damping: float | None = None
    note: str | None = None

    @property
    def kind(self) -> str:
        """The name inside the block, the experts of a mixture being one kind."""
        return common_kind(self.name, self.block)

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return self.zeros / (self.shape[0] * self.shape[1])

    def to_json(self) -> dict[str, Any]:
        """The sparsity and all fields as JSON values."""
        return {**asdict(self), "shape": list(self.shape), "sparsity": round(self.sparsity, 6)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MatrixRecord":
        """Read back what `to_json` wrote."""
        fields = {key: value[key] for key in ("name", "block", "zeros", "damping", "note")}
        shape = (value["shape"][0], value["shape"][1])
        return cls(shape=shape, **fields)


def total_sparsity(records: Sequence[MatrixRecord]) -> float:
    """The share of zeros over all pruned matrices together."""
    weights = sum(record.shape[0] * record.shape[1] for record in records)
    return sum(record.zeros for record in records) / weights


class PrunedMatrices(Tabular):
    """The base of pruning results: a row for each matrix, and the share of zeros."""

    records: Sequence[MatrixRecord]

    @property
    def sparsity(self) -> float:
        """The share of zeros over all pruned matrices."""
        return total_sparsity(self.records)

    def share(self) -> str:
        """How much of the matrices is zero, as a sentence without its stop."""
        return f"{self.sparsity:.2%} of the weights of {len(self.records)} matrices are zero"

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each matrix."""
        return [record.to_json() for record in self.records]
