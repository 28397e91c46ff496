"""The one walk over the decoder blocks: each block's inputs, its statistics, its outputs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.statistics import Kind, MatrixStatistics
from pruner_zero.models.blocks import DISCARDED, Activations, run_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import Matrix
from pruner_zero.models.transformers_private import experts_one_by_one
from pruner_zero.tensor_file import TensorFile, TensorWriter, writing_tensors

# Where the input of the block of a number is kept, window by window: a new list, or a new file.
Storage = Callable[[int], Activations]


class Walk:
    """The activations before one decoder block after the other, by calibration window.

    tokens: the windows (n, seqlen). storage: where activations are kept, in memory where None.
    hidden: the input of the block whose turn it is, a (1, tokens, width) tensor for each window;
    given for an interrupted walk, else that of the first block. dense: a walk over the dense model
    on the same tokens, which goes one block on whenever this one collects; compared: whether
    statistics compare its inputs with these. The caller loads the block of each turn and may change
    its weights between `collect` and `advance`.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        tokens: Tensor,
        storage: Storage | None = None,
        hidden: Activations | None = None,
        dense: "Walk | None" = None,
        compared: bool = True,
    ) -> None:
        self.dense, self.compared = dense, compared
        self._storage: Storage = storage or (lambda _index: [])
        calls = language_model.block_calls(
            tokens, self._storage(0) if hidden is None else DISCARDED
        )
        self.hidden = calls.hidden if hidden is None else hidden
        # Each walk has arguments of its own: through some, a block passes keys and values on.
        self.arguments = calls.arguments

    def collect(
        self,
        block: nn.Module,
        index: int,
        matrices: Sequence[Matrix],
        kinds: Collection[Kind],
        *,
        advance: bool = False,
    ) -> dict[str, MatrixStatistics]:
        """The statistics `kinds` of `matrices`, all of one loaded block, by matrix name.

        advance: whether the outputs of this pass become the input of the next block, as in a model
        that is not changed on the way.
        """
        dense = self.dense
        if dense and not (matrices and self.compared):
            dense.advance(block, index, observed=True)
            dense = None
        if not matrices and not advance:
            return {}
        outputs = self._storage(index + 1) if advance else DISCARDED
        dense_outputs = dense._storage(index + 1) if dense else None
        statistics, _ = collect_inputs(
            block,
            matrices,
            self.hidden,
            self.arguments[index],
            kinds,
            outputs=outputs,
            dense=dense.hidden if dense else None,
            dense_arguments=dense.arguments[index] if dense else None,
            dense_outputs=dense_outputs,
        )
        if dense and dense_outputs is not None:
            dense.hidden = dense_outputs
        if advance:
            self.hidden = outputs
        return statistics

    def advance(self, block: nn.Module, index: int, *, observed: bool = False) -> None:
        """Run one loaded block; its outputs are the input of the next one.

        observed: whether the experts of a mixture run one by one, so that the outputs are those
        that `collect` gives.
        """
        with experts_one_by_one(block) if observed else nullcontext():
            outputs = self._storage(index + 1)
            self.hidden = run_windows(block, self.hidden, self.arguments[index], outputs)


_NAME = "hidden"


class WindowFile:
    """One (1, tokens, width) tensor for each window; none of them stays in memory.

    The file is written by as many calls of `append` as there are windows. After the last call it
    exists at `path`, and `sha256` is set. Raises PrunerZeroError where it cannot be written or
    read.
    """

    def __init__(self, path: Path, windows: int) -> None:
        self.path = path
        self.sha256 = ""
        self._windows = windows
        self._written = 0
        # Holds the file while it is written.
        self._stack = ExitStack()
        self._writer: TensorWriter | None = None
        self._reader: TensorFile | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file that was written before."""
        reader = TensorFile(path)
        file = cls(path, reader.shape(_NAME)[0])
        file._written, file._reader = file._windows, reader
        return file

    def append(self, tensor: Tensor) -> None:
        """Write the output for the next window."""
        # An error deletes what was written.
        with self._stack.pop_all() as stack:
            if self._writer is None:
                layout = {_NAME: (tensor.dtype, (self._windows, *tensor.shape[1:]))}
                self._writer = stack.enter_context(writing_tensors(self.path, layout))
            self._writer.write(tensor)
            self._written += 1
            if self._written < self._windows:
                self._stack = stack.pop_all()
                return
        self.sha256, self._writer = self._writer.sha256, None
        self._reader = TensorFile(self.path)

    def __len__(self) -> int:
        return self._written

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        """The tensor of a window, copied to newly allocated memory.

        Newly allocated memory has the alignment of computed tensors. Matrix products may round
        differently with another alignment, and a resumed run must end with the same bytes.
        """
        if not 0 <= index < len(self) or self._reader is None:
            raise IndexError(index)
        return self._reader.read(_NAME, index)
