"""Sums over the gradients at the outputs of matrices, and the statistics they make."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pruner_zero.calibration.products import check_observed, products_observed
from pruner_zero.calibration.statistics import GRADIENT_SCALE, Kind, OutputGradientStatistic
from pruner_zero.models.structure import Matrix


class OutputSums:
    """Sums over tokens of the gradients at the outputs of `matrices`, fp32: vectors alone.

    The gradients are read by hooks on activations, so that no parameter needs a gradient.
    """

    def __init__(
        self, matrices: Sequence[Matrix], statistics: Mapping[Kind, OutputGradientStatistic]
    ) -> None:
        self.matrices = matrices
        self.statistics = statistics
        self.seen: set[str] = set()
        self.sums = {
            matrix.name: {
                kind: torch.zeros(
                    statistic.shape(matrix.weight.shape[0]), device=matrix.weight.device
                )
                for kind, statistic in statistics.items()
            }
            for matrix in matrices
        }

    @contextmanager
    def collecting(self, module: nn.Module) -> Iterator[None]:
        """Fold in the gradients of every backward pass through `module`, which has all matrices.

        Gradients must be enabled within the context.
        """
        if not self.statistics:
            yield
            return
        of_parameter = {
            id(parameter): part
            for part in module.modules()
            for parameter in part.parameters(recurse=False)
        }
        products = []
        with ExitStack() as stack:
            for matrix in self.matrices:
                part = of_parameter[id(matrix.parameter)]
                # Other forward methods, such as a router's, do not return the plain product.
                if type(part).forward in (nn.Linear.forward, Conv1D.forward):
                    handle = part.register_forward_hook(
                        lambda _part, _inputs, out, name=matrix.name: self._watch([name], out, None)
                    )
                    stack.callback(handle.remove)
                else:
                    products.append(matrix)
            if products:
                stack.enter_context(products_observed(module, products, self._see))
            yield

    def result(self, windows: int) -> dict[Kind, dict[str, Tensor]]:
        """The statistics (out, 1) by kind and matrix name over that many `windows`.

        A matrix that no gradient reached has zeros. Raises PrunerZeroError where the outputs of a
        mixture's experts could not be observed.
        """
        if self.statistics:
            check_observed(self.matrices, self.seen, "outputs", "without O")
        return {
            kind: {
                name: statistic.value(of_matrix[kind], windows)
                for name, of_matrix in self.sums.items()
            }
            for kind, statistic in self.statistics.items()
        }

    def _see(self, names: Sequence[str | None], inputs: Tensor, output: Tensor) -> Tensor:
        # Some mixtures give an expert zeros in the place of the tokens of other experts.
        return self._watch(names, output, inputs.detach().any(-1))

    def _watch(self, names: Sequence[str | None], output: Tensor, given: Tensor | None) -> Tensor:
        """Add the gradient at `output` during the backward pass; return the output to use.

        names: of the matrices whose outputs its first dimension enumerates where they are several.
        given: which tokens the matrices are given, all where None.
        """
        self.seen.update(name for name in names if name is not None)
        if not output.requires_grad:
            # Nothing before it needs a gradient, so the backward pass ends here. A copy, because
            # the model may write to its activations, and must not write to a leaf of the graph.
            output = output.requires_grad_().clone()
        output.register_hook(partial(self._fold, names, given))
        return output

    def _fold(self, names: Sequence[str | None], given: Tensor | None, gradient: Tensor) -> None:
        count, outputs = len(names), gradient.shape[-1]
        for index, name in enumerate(names):
            if name is None:
                continue
            tokens = gradient.detach().reshape(count, -1, outputs)[index]
            if given is not None:
                tokens = tokens[given.reshape(count, -1)[index]]
            # Not in place: the gradient is also passed on to earlier layers.
            tokens = tokens.float() * GRADIENT_SCALE
            for kind, statistic in self.statistics.items():
                statistic.add(self.sums[name][kind], tokens)
