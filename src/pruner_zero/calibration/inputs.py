"""Forward: the statistics of what enters each weight matrix of one decoder block."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruner_zero.calibration.input_sums import InputSums
from pruner_zero.calibration.statistics import InputStatistic, Kind, MatrixStatistics, select
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Activations, Arguments, Matrix, experts_one_by_one, run_block


def collect_inputs(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Iterable[Tensor],
    arguments: Sequence[Arguments],
    kinds: Iterable[Kind] = (),
    *,
    outputs: Activations | None = None,
    dense: Iterable[Tensor] | None = None,
    dense_outputs: Activations | None = None,
) -> tuple[dict[str, MatrixStatistics], Activations]:
    """Run `block` over all windows once; return statistics by matrix name, and its outputs.

    hidden, arguments: one a window, as `record_block_calls` gives them. kinds: the statistics to
    collect; X always comes along, since it costs next to nothing. outputs: where the
    outputs are appended, a new list where None. dense: the input that the dense model gives the
    block, which is run on it too, for "cross"; its outputs go to `dense_outputs`.
    Raises PrunerZeroError where the inputs of a mixture's experts cannot be observed.
    """
    sums = InputSums(select(InputStatistic, {"X", *kinds}))
    outputs = [] if outputs is None else outputs
    dense_outputs = [] if dense_outputs is None else dense_outputs
    with torch.no_grad(), _observing(block, matrices, sums):
        dense_windows = [None] * len(arguments) if dense is None else dense
        for window, dense_window, rest in zip(hidden, dense_windows, arguments, strict=True):
            if dense_window is not None:
                with sums.dense():
                    dense_outputs.append(run_block(block, dense_window, rest))
            outputs.append(run_block(block, window, rest))
            sums.end_window()
    _check_observed(matrices, sums)
    return sums.result(matrices, len(arguments)), outputs


@contextmanager
def _observing(block: nn.Module, matrices: Sequence[Matrix], sums: InputSums) -> Iterator[None]:
    modules = dict(block.named_modules(prefix=""))
    with ExitStack() as stack:
        for matrix in matrices:
            if matrix.expert is None:
                module = modules[matrix.kind]
                handle = module.register_forward_pre_hook(
                    lambda _module, inputs, name=matrix.name: sums.add(name, inputs[0])
                )
                stack.callback(handle.remove)
        stacked = [matrix for matrix in matrices if matrix.expert is not None]
        if stacked:
            stack.enter_context(experts_one_by_one(block))
            stack.enter_context(_StackedInputs(stacked, sums))
        yield


class _StackedInputs(TorchFunctionMode):
    """Observes every product with a slice of a parameter that stacks the experts of a mixture.

    Experts kept in one 3-D parameter have no module of their own to hook, so the slice is
    recognised by its address in memory.
    """

    _products = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul)
    _stacked_products = (torch.bmm, torch.Tensor.bmm)

    def __init__(self, matrices: Sequence[Matrix], sums: InputSums) -> None:
        super().__init__()
        self.names = {matrix.weight.data_ptr(): matrix.name for matrix in matrices}
        self.sums = sums

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) > 1:
            if func in self._stacked_products:
                for inputs, weight in zip(args[0], args[1], strict=True):
                    self._see(inputs, weight)
            elif func in self._products or getattr(func, "__name__", "") == "__matmul__":
                self._see(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _see(self, inputs: Tensor, weight: Tensor) -> None:
        name = self.names.get(weight.data_ptr())
        if name is not None:
            self.sums.add(name, inputs)


def _check_observed(matrices: Sequence[Matrix], sums: InputSums) -> None:
    """Raise PrunerZeroError for a stack of experts of which none saw a token.

    Every mixture sends each token to some expert, so the products with this stack were missed.
    """
    stacks: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if matrix.expert is not None:
            stacks.setdefault(matrix.parameter_name, []).append(matrix)
    for name, experts in stacks.items():
        whole = len(experts) == experts[0].parameter.shape[0]
        if whole and not any(matrix.name in sums.owner for matrix in experts):
            raise PrunerZeroError(
                f"the inputs of {name} cannot be observed, its model multiplies it in a way that "
                "is not known here: choose a metric without X and without D, and no update"
            )
