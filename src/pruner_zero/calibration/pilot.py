"""Backward: what the zeros of a pilot mask cost in each matrix, one number a matrix."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from pruner_zero.calibration.inputs import check_observed, outputs_observed, with_gradient
from pruner_zero.calibration.statistics import Kind, MaskPriceStatistic
from pruner_zero.models.matrices import Matrix


def pilot_cut(scores: Tensor) -> Tensor:
    """The highest of the scores |W|·X (rows, in) that the pilot mask takes away, (rows, 1)."""
    return scores.median(1, keepdim=True).values


class PilotSums:
    """Sums over tokens of what a pilot mask changes in the loss, by matrix.

    The mask takes the half of each row away that has the lowest |W|·X. Beside vectors, only the
    inputs of the matrices are kept from the forward to the backward pass, which holds them anyway.
    norms: X (1, in) by matrix name. tokens: of a window.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        statistics: Mapping[Kind, MaskPriceStatistic],
        norms: Mapping[str, Tensor],
        tokens: int,
    ) -> None:
        self.statistics, self.tokens = statistics, tokens
        self.matrices = {matrix.name: matrix for matrix in (matrices if statistics else ())}
        self.norms = {name: norms[name].to(m.weight.device) for name, m in self.matrices.items()}
        self.cuts = {name: pilot_cut(self._scores(name)) for name in self.matrices}
        self.sums = {name: cut.new_zeros(()) for name, cut in self.cuts.items()}
        self.seen: set[str] = set()

    @contextmanager
    def collecting(self, module: nn.Module) -> Iterator[None]:
        """Fold in the gradients of every backward pass through `module`, which has all matrices.

        Gradients must be enabled within the context.
        """
        if not self.matrices:
            yield
            return
        with outputs_observed(module, [*self.matrices.values()], self._see):
            yield

    def result(self, windows: int) -> dict[Kind, dict[str, Tensor]]:
        """The statistics (1, 1) by kind and matrix name over that many `windows`.

        A matrix that no gradient reached has zero. Raises PrunerZeroError where the products of a
        mixture's experts could not be observed.
        """
        check_observed([*self.matrices.values()], self.seen, "outputs", "without P")
        prices = {}
        for name, total in self.sums.items():
            # The loss is the mean over the tokens that follow another.
            mean = total * (self.tokens - 1) / (windows * self.tokens)
            prices[name] = (mean.square() / 2 / self.matrices[name].weight.numel()).reshape(1, 1)
        return {kind: dict(prices) for kind in self.statistics}

    def _scores(self, name: str) -> Tensor:
        return self.matrices[name].weight.detach().float().abs() * self.norms[name]

    def _see(self, names: Sequence[str | None], inputs: Tensor, output: Tensor) -> Tensor:
        """Add what the mask changes during the backward pass; return the output to use.

        names: of the matrices that the first dimension enumerates where they are several.
        """
        self.seen.update(name for name in names if name is not None)
        rows = inputs.detach().reshape(len(names), -1, inputs.shape[-1])
        output = with_gradient(output)

        def fold(gradient: Tensor) -> None:
            gradients = gradient.detach().reshape(len(names), -1, gradient.shape[-1])
            for name, values, of_values in zip(names, rows, gradients, strict=True):
                if name is not None:
                    self._fold(name, values, of_values)

        output.register_hook(fold)
        return output

    def _fold(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        weight = self.matrices[name].weight.detach()
        gone = weight.masked_fill(self._scores(name) > self.cuts[name], 0)
        changes = (inputs.to(weight.dtype) @ gone.T).float() * gradients.float()
        self.sums[name] += changes.sum(1).abs().sum()
