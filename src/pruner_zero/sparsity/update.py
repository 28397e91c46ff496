"""Updates: what changes the kept weights of one matrix to compensate for the pruned ones."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Layer:
    """One matrix before its update.

    dense: (out, in), the dense weights. hessian: of its input. pattern: of the zeros. mask:
    (out, in) bool, True is kept; None where the update chooses it. Raises PrunerZeroError naming
    `name` where a weight is not finite; ValueError for shapes.
    """

    dense: Tensor
    hessian: Hessian
    pattern: Pattern
    mask: Tensor | None = None
    name: str = "matrix"

    def __post_init__(self) -> None:
        shape = tuple(self.dense.shape)
        if self.mask is not None and self.mask.shape != shape:
            raise ValueError(f"mask of {self.name} is {tuple(self.mask.shape)}, its weight {shape}")
        if not self.dense.isfinite().all():
            raise PrunerZeroError(f"weights of {self.name} are not finite: exclude the matrix")

    @property
    def weight(self) -> Tensor:
        """The dense weights (out, in) float32."""
        return self.dense.detach().float()

    @property
    def required_mask(self) -> Tensor:
        """The mask of an update that does not choose it. Raises ValueError where there is none."""
        if self.mask is None:
            raise ValueError(f"the mask of {self.name} must be chosen before this update")
        return self.mask


@dataclass(frozen=True)
class Updated:
    """The result of an update: weight (out, in) float32, 0.0 where `mask` (True is kept) prunes."""

    weight: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Update:
    """An update of kept weights: `run` is a function of a `Layer`.

    name: as written after a `+`. words: what it does, for the model card, after "then: ". shrinks:
    whether its Hessian is shrunk for the number of tokens behind it.
    """

    name: str
    run: Callable[[Layer], Updated]
    words: str
    shrinks: bool = False
