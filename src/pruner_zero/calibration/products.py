"""Products with matrices that have no module of their own, as the experts in one parameter."""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.loss import in_float32
from pruner_zero.models.structure import Matrix
from pruner_zero.models.transformers_private import experts_one_by_one

# Called with the names of matrices, their inputs and the product, whose first dimension enumerates
# the matrices where they are several. Its result replaces the product. The name of a matrix that is
# not observed is None.
See = Callable[[Sequence[str | None], Tensor, Tensor], Tensor]


@contextmanager
def products_observed(module: nn.Module, matrices: Sequence[Matrix], see: See) -> Iterator[None]:
    """Within the context, `see` is called at each product with one of `matrices` in `module`.

    Mixtures run expert by expert meanwhile.
    """
    with in_float32(module), experts_one_by_one(module), _Products(matrices, see):
        yield


class _Products(TorchFunctionMode):
    """Observes every product with a parameter, or with a slice of one that stacks experts.

    Experts kept in one 3-D parameter have no module of their own to hook, so a matrix is
    recognised by its address in memory.
    """

    _products = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul)
    _stacked_products = (torch.bmm, torch.Tensor.bmm)

    def __init__(self, matrices: Sequence[Matrix], see: See) -> None:
        super().__init__()
        self.names = {matrix.weight.data_ptr(): matrix.name for matrix in matrices}
        self.see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        names: list[str | None] = []
        if len(args) > 1:
            if func in self._stacked_products:
                names = [self.names.get(weight.data_ptr()) for weight in args[1]]
            elif func in self._products or getattr(func, "__name__", "") == "__matmul__":
                names = [self.names.get(args[1].data_ptr())]
        if any(name is not None for name in names):
            return self.see(names, args[0], result)
        return result


def check_observed(
    matrices: Sequence[Matrix], seen: Container[str], what: str, instead: str
) -> None:
    """Raise PrunerZeroError for a stack of experts without any expert name in `seen`.

    Every mixture sends each token to some expert, so the products with this stack were missed.
    what: the values to be observed. instead: the metric to choose.
    """
    stacks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is not None:
            stacks.setdefault(matrix.parameter_name, []).append(matrix)
    for name, experts in stacks.items():
        whole = len(experts) == experts[0].parameter.shape[0]
        if whole and not any(matrix.name in seen for matrix in experts):
            raise PrunerZeroError(
                f"the {what} of {name} cannot be observed, its model multiplies it in a way that "
                f"is not known here: choose a metric {instead}"
            )
