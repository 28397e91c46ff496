"""What the offsets of a candidate mean for the matrices of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruner_zero.models import Matrix
from pruner_zero.sparsity import Allocation, Granularity, Scope, exact, from_offsets


@dataclass(frozen=True)
class Layout:
    """What offsets stand for: the block, the kind and the shape (out, in) of each matrix.

    A candidate's offsets are logits, those of the blocks in order, then those of the kinds.
    The experts of a mixture are of one kind.
    """

    blocks: Mapping[str, int]
    kinds: Mapping[str, str]
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> "Layout":
        """The layout of the matrices of a model that are pruned."""
        order = sorted({one.block for one in matrices})
        return cls(
            {one.name: order.index(one.block) for one in matrices},
            {one.name: one.common_kind for one in matrices},
            {one.name: (one.weight.shape[0], one.weight.shape[1]) for one in matrices},
        )

    @property
    def depth(self) -> int:
        """How many offsets are of blocks."""
        return max(self.blocks.values()) + 1

    @property
    def kind_names(self) -> list[str]:
        """Which kinds the offsets after those of the blocks are of."""
        return list(dict.fromkeys(self.kinds.values()))

    def allocation(
        self,
        offsets: Sequence[float],
        sparsity: float,
        start: Mapping[str, float] | None = None,
    ) -> Allocation:
        """The shares that `offsets` mean, their mean `sparsity`: see `from_offsets`.

        start: the share of each matrix where all offsets are zero; None: all alike.
        """
        depth = self.depth
        kinds = dict(zip(self.kind_names, offsets[depth:], strict=True))
        sizes = {name: rows * columns for name, (rows, columns) in self.shapes.items()}
        return from_offsets(
            offsets[:depth], kinds, self.blocks, self.kinds, sizes, sparsity, start=start
        )

    def shares(self, allocation: Allocation, sparsity: float, scope: Scope) -> Mapping[str, float]:
        """The shares as `prune` obeys them, by name: their total exact in groups of `scope`.

        Raises PrunerZeroError for other matrices or another mean.
        """
        groups: Granularity = "row" if scope == "row" else "matrix"
        return exact(allocation, self.shapes, sparsity, groups).sparsity
