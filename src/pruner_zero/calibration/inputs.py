"""Forward: the statistics of the inputs of each weight matrix of one decoder block."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from pruner_zero.calibration.input_sums import InputSums
from pruner_zero.calibration.products import check_observed, products_observed
from pruner_zero.calibration.statistics import InputStatistic, Kind, MatrixStatistics, select
from pruner_zero.models import (
    Activations,
    Arguments,
    Matrix,
    experts_one_by_one,
    in_float32,
    run_block,
)


def collect_inputs(
    block: nn.Module,
    matrices: Sequence[Matrix],
    hidden: Iterable[Tensor],
    arguments: Sequence[Arguments],
    kinds: Iterable[Kind] = (),
    *,
    outputs: Activations | None = None,
    dense: Iterable[Tensor] | None = None,
    dense_arguments: Sequence[Arguments] | None = None,
    dense_outputs: Activations | None = None,
) -> tuple[dict[str, MatrixStatistics], Activations]:
    """Run `block` over all windows once; return statistics by matrix name, and its outputs.

    hidden, arguments: one for each window, as `record_block_calls` gives them. kinds: the
    statistics to collect; X always comes along, since it costs next to nothing. outputs: where the
    outputs are appended, a new list where None. dense: the input that the dense model gives the
    block, which is run on it too, with `dense_arguments` or else the same, for "cross"; its outputs
    go to `dense_outputs`.
    Raises PrunerZeroError where the inputs of a mixture's experts cannot be observed.
    """
    sums = InputSums(select(InputStatistic, {"X", *kinds}))
    outputs = [] if outputs is None else outputs
    dense_outputs = [] if dense_outputs is None else dense_outputs
    with torch.no_grad(), in_float32(block), _observing(block, matrices, sums):
        dense_windows = [None] * len(arguments) if dense is None else dense
        of_dense = arguments if dense_arguments is None else dense_arguments
        windows = zip(hidden, arguments, dense_windows, of_dense, strict=True)
        for window, rest, dense_window, dense_rest in windows:
            if dense_window is not None:
                with sums.dense():
                    dense_outputs.append(run_block(block, dense_window, dense_rest))
            outputs.append(run_block(block, window, rest))
            sums.end_window()
    check_observed(matrices, sums.owner, "inputs", "without X and without D, and no update")
    return sums.result(matrices, len(arguments)), outputs


@contextmanager
def _observing(block: nn.Module, matrices: Sequence[Matrix], sums: InputSums) -> Iterator[None]:
    modules = dict(block.named_modules(prefix=""))

    def see(names: Sequence[str | None], inputs: Tensor, output: Tensor) -> Tensor:
        for name, of_matrix in zip(names, [inputs] if len(names) == 1 else inputs, strict=True):
            if name is not None:
                sums.add(name, of_matrix)
        return output

    with ExitStack() as stack:
        # Also where no expert is observed, so that outputs do not depend on `matrices`.
        stack.enter_context(experts_one_by_one(block))
        for matrix in matrices:
            if matrix.expert is None:
                module = modules[matrix.kind]
                handle = module.register_forward_pre_hook(
                    lambda _module, inputs, name=matrix.name: sums.add(name, inputs[0])
                )
                stack.callback(handle.remove)
        stacked = [matrix for matrix in matrices if matrix.expert is not None]
        if stacked:
            stack.enter_context(products_observed(block, stacked, see))
        yield
