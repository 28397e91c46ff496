"""Backward: the statistics of gradients, for a model that is in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.inputs import check_observed, outputs_observed, with_gradient
from pruner_zero.calibration.pilot import PilotSums
from pruner_zero.calibration.prices import PriceSums
from pruner_zero.calibration.statistics import (
    GRADIENT_SCALE,
    GradientStatistic,
    Kind,
    MaskPriceStatistic,
    MatrixStatistics,
    OutputGradientStatistic,
    PriceStatistic,
    WeightGradientStatistic,
    by_loss,
    select,
    windows_needed,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.couplings import head_slices
from pruner_zero.models.matrices import Matrix, find_blocks, parameters_of
from pruner_zero.models.next_token import gradients_to, next_token_loss
from pruner_zero.models.sampling import drawn_label_loss, label_places
from pruner_zero.progress import track


def collect_gradients(
    model: PreTrainedModel,
    matrices: Sequence[Matrix],
    windows: Tensor,
    kinds: Iterable[Kind] = ("G",),
    *,
    norms: Mapping[str, Tensor] = MappingProxyType({}),
    seed: int = 0,
) -> dict[str, MatrixStatistics]:
    """Statistics of the gradients over `windows` (n, tokens), by matrix name.

    Kinds of the same loss take one backward pass. Weights have a gradient only where a kind needs
    it. norms: X (1, in) by matrix name, which P needs. seed: of labels that the model draws. Raises
    PrunerZeroError as `check_gradients`, on a gradient that is not finite, and where inputs or
    outputs of a mixture's experts cannot be observed and a kind needs them.
    """
    wanted = frozenset(kinds)
    check_gradients(matrices)
    results: dict[str, MatrixStatistics] = {matrix.name: {} for matrix in matrices}
    blocks = dict(enumerate(find_blocks(model)))
    for statistics in by_loss(wanted):
        counted = windows[: windows_needed(statistics, *windows.shape)]
        sums = GradientSums(matrices, statistics, head_slices(model), windows.shape[1], norms)
        with sums.collecting(model, blocks):
            losses = window_losses(model, counted, statistics, seed)
            for loss in track(losses, "gradients", len(counted)):
                loss.backward()
        for name, values in sums.result(len(counted)).items():
            results[name] |= values
    return results


def window_losses(
    model: nn.Module, windows: Tensor, statistics: Mapping[Kind, GradientStatistic], seed: int = 0
) -> Iterator[Tensor]:
    """The loss of each window whose gradients `statistics`, all of one loss, are made of.

    It is computed when its turn comes.
    """
    if any(statistic.drawn for statistic in statistics.values()):
        for window, places in zip(windows, label_places(windows, seed), strict=True):
            yield drawn_label_loss(model, window[None], places)
    else:
        for window in windows:
            yield next_token_loss(model, window[None])


class GradientSums:
    """Sums over windows of what a backward pass collects of `matrices`, by kind of statistic.

    slices, tokens, norms: as `PriceSums` and `PilotSums` take them.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        kinds: Iterable[Kind],
        slices: Mapping[str, int],
        tokens: int,
        norms: Mapping[str, Tensor],
    ) -> None:
        wanted = frozenset(kinds)
        self.matrices = matrices
        self.pilot = PilotSums(matrices, select(MaskPriceStatistic, wanted), norms, tokens)
        self.outputs = OutputSums(matrices, select(OutputGradientStatistic, wanted))
        self.prices = PriceSums(matrices, select(PriceStatistic, wanted), slices, tokens)
        self.statistics = select(WeightGradientStatistic, wanted)
        # Empty where no statistic needs the gradient of a weight.
        self.parameters = parameters_of(matrices) if self.statistics else {}
        self.sums = {
            kind: {
                name: torch.zeros(p.shape, dtype=torch.float32, device=p.device)
                for name, p in self.parameters.items()
            }
            for kind in self.statistics
        }

    @contextmanager
    def collecting(self, module: nn.Module, blocks: Mapping[int, nn.Module]) -> Iterator[None]:
        """Fold in the gradients of every backward pass through `module`, which has all matrices.

        blocks: those in `module` by number.
        """
        receivers = {p: partial(self._fold, name) for name, p in self.parameters.items()}
        with (
            gradients_to(receivers, module),
            self.outputs.collecting(module),
            self.prices.collecting(module, blocks),
            self.pilot.collecting(module),
        ):
            yield

    def result(self, windows: int) -> dict[str, MatrixStatistics]:
        """The statistics by matrix name over that many `windows`; the sums are used up.

        Raises PrunerZeroError on NaN, and where inputs or outputs of experts were not observed.
        """
        values = self.outputs.result(windows) | self.prices.result(windows)
        values |= self.pilot.result(windows)
        for kind, statistic in self.statistics.items():
            for total in self.sums[kind].values():
                statistic.value(total)
            sums = self.sums[kind]
            values[kind] = {m.name: m.view(sums[m.parameter_name]) for m in self.matrices}
        results: dict[str, MatrixStatistics] = {matrix.name: {} for matrix in self.matrices}
        for kind, by_name in values.items():
            for name, value in by_name.items():
                if not torch.isfinite(value).all():
                    raise PrunerZeroError(
                        f"the gradient of {name} is not finite: check the weights "
                        "or choose --dtype float32"
                    )
                results[name][kind] = value
        return results

    def _fold(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.float().mul_(GRADIENT_SCALE)
        *earlier, last = self.statistics
        for kind in earlier:
            self.statistics[kind].add(self.sums[kind][name], gradient.clone())
        self.statistics[last].add(self.sums[last][name], gradient)


def check_gradients(matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError where gradients of `matrices` could not be trusted."""
    if any(matrix.parameter.dtype == torch.float16 for matrix in matrices):
        raise PrunerZeroError(
            "gradients in float16 vanish: choose --dtype bfloat16 or float32, "
            "or a metric without G, O, F and P"
        )


class OutputSums:
    """Sums over tokens of the gradients at the outputs of `matrices`, fp32: vectors alone.

    The gradients are read by hooks on activations, so that no parameter needs a gradient.
    """

    def __init__(
        self, matrices: Sequence[Matrix], statistics: Mapping[Kind, OutputGradientStatistic]
    ) -> None:
        self.matrices = matrices
        self.statistics = statistics
        self.experts = {matrix.name for matrix in matrices if matrix.expert is not None}
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
        with outputs_observed(module, self.matrices, self._see):
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
        """Add the gradient at `output` during the backward pass; return the output to use.

        names: of the matrices whose outputs its first dimension enumerates where they are several.
        """
        self.seen.update(name for name in names if name is not None)
        # Some mixtures give an expert zeros in the place of the tokens of other experts.
        experts = not self.experts.isdisjoint(names)
        given = inputs.detach().any(-1) if experts else None
        output = with_gradient(output)
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
