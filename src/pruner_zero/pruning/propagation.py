"""The activations between blocks while the model is pruned block after block."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from pruner_zero.calibration import Kind, MatrixStatistics, WindowFile, collect_inputs
from pruner_zero.journal import Journal
from pruner_zero.models import (
    DISCARDED,
    Activations,
    LanguageModel,
    Matrix,
    OffloadedModel,
    experts_one_by_one,
    run_windows,
)
from pruner_zero.pruning.checkpoint import (
    last_activations,
    new_activations,
    new_dense_activations,
)


class Propagation:
    """The activations between two blocks of the pruned model, by calibration window.

    hidden: the input of the next block. If `asymmetric`, the dense model's input of that block is
    kept too. An offloaded model keeps both in files beside the journal and continues after the
    finished blocks. A model in memory still has its dense weights at this point; `catch_up` then
    runs the finished blocks.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokens: Tensor,
        journal: Journal | None,
        *,
        asymmetric: bool,
    ) -> None:
        on_disk = isinstance(language_model, OffloadedModel)
        self._journal = journal if on_disk else None
        self._windows = len(tokens)
        started = last_activations(journal) if journal and on_disk else None
        self.hidden: Activations = self._place(-1) if started is None else started
        first = self.hidden if started is None else DISCARDED
        self._arguments = language_model.block_calls(tokens, first).arguments
        self._dense: Activations | None = None
        self._dense_arguments = self._arguments
        if asymmetric:
            self._dense = self._dense_place(-1)
            # Of its own: through some arguments a block passes keys and values on to later ones.
            self._dense_arguments = language_model.block_calls(tokens, self._dense).arguments
            for index in range(journal.finished if journal else 0):
                with language_model.block(index) as block:
                    self._dense = self._run_dense(block, index, self._dense)

    @property
    def file(self) -> WindowFile | None:
        """`hidden` where it is on disk."""
        return self.hidden if isinstance(self.hidden, WindowFile) else None

    def catch_up(self, language_model: LanguageModel, finished: int) -> None:
        """Run the finished blocks of a model in memory, which has their pruned weights by now."""
        for index in range(0 if self._journal else finished):
            with language_model.block(index) as block:
                self.advance(block, index)

    def observe(
        self, block: nn.Module, index: int, matrices: Sequence[Matrix], kinds: Collection[Kind]
    ) -> dict[str, MatrixStatistics]:
        """The statistics `kinds` of the inputs of `matrices` in one loaded, still dense block."""
        inputs: dict[str, MatrixStatistics] = {}
        if matrices:
            dense_outputs = None if self._dense is None else self._dense_place(index)
            inputs, _ = collect_inputs(
                block,
                matrices,
                self.hidden,
                self._arguments[index],
                kinds,
                outputs=DISCARDED,
                dense=self._dense,
                dense_arguments=self._dense_arguments[index],
                dense_outputs=dense_outputs,
            )
            self._dense = dense_outputs
        elif self._dense is not None:
            self._dense = self._run_dense(block, index, self._dense)
        return inputs

    def advance(self, block: nn.Module, index: int) -> None:
        """Run one loaded block that has been pruned; its outputs are the next `hidden`."""
        self.hidden = run_windows(block, self.hidden, self._arguments[index], self._place(index))

    def _run_dense(self, block: nn.Module, index: int, hidden: Activations) -> Activations:
        """Run one loaded dense block; returns its outputs, the same as `observe` makes."""
        place = self._dense_place(index)
        with experts_one_by_one(block):
            return run_windows(block, hidden, self._dense_arguments[index], place)

    def _place(self, index: int) -> Activations:
        """A new place for the outputs of a block; −1 stands for the embeddings."""
        return new_activations(self._journal, index, self._windows) if self._journal else []

    def _dense_place(self, index: int) -> Activations:
        journal = self._journal
        return new_dense_activations(journal, index, self._windows) if journal else []
