"""Backward: the prices of units, from values and the gradients at them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruner_zero.calibration.inputs import check_observed, products_observed, split_products
from pruner_zero.calibration.statistics import (
    InputPriceStatistic,
    Kind,
    PriceStatistic,
)
from pruner_zero.models.block_calls import hidden_of, split_arguments
from pruner_zero.models.matrices import Matrix


class PriceSums:
    """Sums over tokens of the squared products of values and their gradients, fp32: vectors alone.

    slices: into how many units the inputs of a matrix fall, by its name, each input where it is
    not there. tokens: of a window.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        statistics: Mapping[Kind, PriceStatistic],
        slices: Mapping[str, int],
        tokens: int,
    ) -> None:
        self.matrices, self.statistics, self.tokens = matrices, statistics, tokens
        self.seen: set[str] = set()
        # By kind and the name of a matrix, or the number of a block: a sum for each unit.
        self.sums: dict[tuple[Kind, str | int], Tensor] = {}
        for kind, statistic in statistics.items():
            for matrix in matrices:
                device, width = matrix.weight.device, matrix.weight.shape[1]
                if isinstance(statistic, InputPriceStatistic):
                    units = 1 if statistic.whole else slices.get(matrix.name, width)
                    self.sums[kind, matrix.name] = torch.zeros(units, device=device)
                else:
                    self.sums[kind, matrix.block] = torch.zeros(1, device=device)

    @contextmanager
    def collecting(self, module: nn.Module, blocks: Mapping[int, nn.Module]) -> Iterator[None]:
        """Fold in the gradients of every backward pass through `module`, which has all `blocks`.

        blocks: by number, all that have matrices. Gradients must be enabled within the context.
        """
        kinds = self.statistics.values()
        with ExitStack() as stack:
            if any(isinstance(statistic, InputPriceStatistic) for statistic in kinds):
                linears, products = split_products(module, self.matrices)
                for name, part in linears:
                    hook = partial(self._enter, name)
                    stack.callback(part.register_forward_pre_hook(hook).remove)
                if products:
                    stack.enter_context(products_observed(module, products, give=self._watch))
            if any(not isinstance(statistic, InputPriceStatistic) for statistic in kinds):
                for index, part in blocks.items():
                    added = partial(self._added, index)
                    stack.callback(part.register_forward_hook(added, with_kwargs=True).remove)
            yield

    def result(self, windows: int) -> dict[Kind, dict[str, Tensor]]:
        """The statistics by kind and matrix name over that many `windows`.

        A matrix that no gradient reached has zeros. Raises PrunerZeroError where the inputs of a
        mixture's experts could not be observed.
        """
        counted = 2 * windows * self.tokens
        values: dict[Kind, dict[str, Tensor]] = {}
        for kind, statistic in self.statistics.items():
            of_inputs = isinstance(statistic, InputPriceStatistic)
            if of_inputs:
                check_observed(self.matrices, self.seen, "inputs", "without F")
            values[kind] = {}
            prices = {key: total / counted for (of, key), total in self.sums.items() if of == kind}
            for matrix in self.matrices:
                price = prices[matrix.name if of_inputs else matrix.block]
                if isinstance(statistic, InputPriceStatistic) and not statistic.whole:
                    columns = matrix.weight.shape[1] // len(price)
                    price = price.repeat_interleave(columns) / columns
                values[kind][matrix.name] = price[None]
        return values

    def _enter(self, name: str, _part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._watch([name], inputs[0]), *inputs[1:])

    def _watch(self, names: Sequence[str | None], inputs: Tensor) -> Tensor:
        """Add the price of `inputs` during the backward pass; return the inputs to use.

        names: of the matrices whose inputs its first dimension enumerates where they are several.
        """
        # Another matrix may have the same inputs, whose gradient must not be counted here. Where
        # nothing before needs a gradient, the backward pass ends here.
        alias = inputs.view_as(inputs) if inputs.requires_grad else inputs.detach().requires_grad_()
        known = [name for name in names if name is not None]
        self.seen.update(known)
        rows = inputs.detach().reshape(len(names), -1, inputs.shape[-1])

        def fold(gradient: Tensor) -> None:
            gradients = gradient.detach().reshape(rows.shape)
            for name, values, of_values in zip(names, rows, gradients, strict=True):
                if name is not None:
                    self._fold(name, values, of_values)

        alias.register_hook(fold)
        return alias

    def _added(
        self,
        index: int,
        _block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        before, after = split_arguments(args, kwargs)[0].detach(), hidden_of(output)
        added = (after.detach() - before.to(after.device))[0]
        if not after.requires_grad:
            # Nothing before it needs a gradient, so the backward pass ends here.
            after.requires_grad_()

        def fold(gradient: Tensor) -> None:
            self._fold(index, added, gradient.detach()[0])

        after.register_hook(fold)

    def _fold(self, key: str | int, values: Tensor, gradients: Tensor) -> None:
        products = values.float() * gradients.float()
        for kind in self.statistics:
            if (kind, key) in self.sums:
                units = len(self.sums[kind, key])
                of_units = products.unflatten(1, (units, -1)).sum(2)
                self.sums[kind, key] += of_units.square().sum(0)
