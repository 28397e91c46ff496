"""Calibration in shares: each takes some windows, and their sums are added in a fixed order.

A sum over windows is a sum over shares of sums, so the statistics are those of all windows at
once up to how fp32 rounds. Shares are added in the order of their windows, whichever is done
first: the same number of shares gives the same bits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import (
    GradientNorm,
    GradientSums,
    check_gradients,
    gradient_windows,
)
from pruner_zero.calibration.input_sums import InputSums
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.offloaded_gradients import write_gradients
from pruner_zero.calibration.store import Kind, StatisticsStore
from pruner_zero.models import (
    Activations,
    BlockCalls,
    find_blocks,
    find_matrices,
    next_token_loss,
    record_block_calls,
)
from pruner_zero.progress import Progress

T = TypeVar("T")


class Share:
    """A share of the windows, and how far a model has run on them."""

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        self.model = model
        self.windows = windows
        self.blocks = find_blocks(model)
        self.matrices = find_matrices(model)
        self.gradients: GradientSums | None = None
        self.calls: BlockCalls | None = None
        self.hidden: Activations = []

    def backward(self, window: int, norm: GradientNorm, seqlen: int | None = None) -> None:
        """Fold in the gradients of the window of this index, if the share has so many.

        seqlen: see `gradient_windows`.
        """
        if self.gradients is None:
            self.gradients = GradientSums(self.matrices, norm)
        for one in gradient_windows(self.windows[window : window + 1], seqlen):
            with self.gradients.collecting(self.model):
                next_token_loss(self.model, one[None]).backward()

    def take_gradients(self, block: int) -> dict[str, Tensor]:
        """What the gradients of one block sum up to, by parameter name; it is given away."""
        assert self.gradients is not None
        own = {one.parameter_name for one in self.matrices if one.block == block}
        return {name: self.gradients.sums.pop(name) for name in sorted(own)}

    def inputs(self, block: int, gram: bool) -> InputSums:
        """Run the next `block`; what entered its matrices."""
        if self.calls is None:
            self.calls = record_block_calls(self.model, self.windows)
            self.hidden = self.calls.hidden
        own = [matrix for matrix in self.matrices if matrix.block == block]
        sums, self.hidden = collect_inputs(
            self.blocks[block], own, self.hidden, self.calls.arguments[block], gram=gram
        )
        return sums


class Shares(Protocol):
    """All shares of the windows, wherever they are."""

    windows: Tensor
    longest: int

    def begin(self) -> None:
        """Shares that have not run at all."""

    def map(self, step: Callable[[Share], T]) -> Iterator[T]:
        """Take every share a step further, at once; what comes of it, in their order."""


def share_gradients(
    model: PreTrainedModel,
    shares: Shares,
    store: StatisticsStore,
    *,
    norm: GradientNorm,
    seqlen: int | None = None,
    progress: Progress,
) -> None:
    """Fill `store` with G of every matrix: what `collect_gradients` finds, to fp32 rounding.

    Here one block is in memory at a time. Raises what `collect_gradients` raises.
    """
    matrices = find_matrices(model)
    check_gradients(matrices)
    shares.begin()
    for window in progress.track(range(shares.longest), "gradients", shares.longest):
        for _ in shares.map(partial(Share.backward, window=window, norm=norm, seqlen=seqlen)):
            pass
    digests = {}
    for block in range(len(find_blocks(model))):
        sums = GradientSums([one for one in matrices if one.block == block], norm)
        for found in shares.map(partial(Share.take_gradients, block=block)):
            sums.add(found)
        digests[block] = write_gradients(store, block, sums.result(), progress)
    store.commit("G", digests)


def share_inputs(
    model: PreTrainedModel,
    shares: Shares,
    store: StatisticsStore,
    *,
    gram: bool,
    progress: Progress,
) -> None:
    """Fill `store` with X, and with XᵀX for `gram`: what `collect_inputs` finds, to rounding.

    Each share keeps what a block hands to the next; only sums travel.
    """
    matrices = find_matrices(model)
    kinds: list[Kind] = ["X", "gram"] if gram else ["X"]
    digests = {kind: dict[int, str]() for kind in kinds}
    depth = len(find_blocks(model))
    shares.begin()
    for block in progress.track(range(depth), "activations", depth):
        own = [matrix for matrix in matrices if matrix.block == block]
        sums = InputSums(gram)
        for found in shares.map(partial(Share.inputs, block=block, gram=gram)):
            sums = sums.plus(found)
        statistics = sums.statistics(own, len(shares.windows))
        for kind in kinds:
            values = {name: getattr(one, kind) for name, one in statistics.items()}
            digests[kind][block] = store.write(kind, block, values)
        del sums, found, statistics, values
    for kind in kinds:
        store.commit(kind, digests[kind])
