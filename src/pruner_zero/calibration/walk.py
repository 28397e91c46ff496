"""The one walk over the decoder blocks: their inputs, statistics and outputs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.statistics import Kind, MatrixStatistics
from pruner_zero.models.block_calls import (
    DISCARDED,
    Activations,
    BlockCalls,
    run_windows,
    shares_state,
)
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_blocks
from pruner_zero.progress import track
from pruner_zero.tensor_file import TensorFile, TensorWriter, writing_tensors

# Where the input of the block of a number is kept, window by window: a new list, or a new file.
Storage = Callable[[int], Activations]


class Walk:
    """One decoder block after the other, with the activations of any number of models before it.

    The models are versions of `language_model` that differ in the weights of their blocks: dense,
    pruned, under several masks. tokens: the windows (n, seqlen). The models are in memory or on
    disk, and so are their activations.
    """

    def __init__(self, language_model: LanguageModel, tokens: Tensor) -> None:
        self.language_model, self.tokens = language_model, tokens
        self.depth = len(find_blocks(language_model.model))
        self._first: BlockCalls | None = None

    def carry(
        self,
        storage: Storage | None = None,
        hidden: Activations | None = None,
        *,
        fast: bool = False,
    ) -> "Stream":
        """The activations of one more version, before its first block.

        storage: where they are kept, in memory where None. hidden: the input of the block at which
        an interrupted walk goes on, a (1, tokens, width) tensor for each window. fast: whether
        products may be in bfloat16.
        """
        calls = self._first
        # Through some arguments a block passes keys and values on: each version has its own ones.
        if calls is None or storage or shares_state(calls):
            start = DISCARDED if hidden is not None else storage(0) if storage else []
            calls = self.language_model.block_calls(self.tokens, start)
        if self._first is None and not storage:
            self._first = calls
        # Keys and values in bfloat16 would meet queries in float32 where a later block is observed.
        fast = fast and not shares_state(calls)
        return Stream(calls.hidden if hidden is None else hidden, calls, storage, fast)

    def blocks(self, doing: str, first: int = 0) -> Iterator[tuple[int, nn.Module]]:
        """The number of each block from `first` on, and the block, loaded until the next one.

        doing: what the progress report says. The caller takes every stream one block on.
        """
        for index in track(range(first, self.depth), doing, self.depth - first):
            with self.language_model.block(index) as block:
                yield index, block


class Stream:
    """The activations of one version of a model before the block whose turn it is.

    hidden: a (1, tokens, width) tensor for each window. calls: how the model calls its blocks.
    """

    def __init__(
        self, hidden: Activations, calls: BlockCalls, storage: Storage | None, fast: bool
    ) -> None:
        self.hidden, self.arguments, self.as_tuple = hidden, calls.arguments, calls.as_tuple
        self._storage: Storage = storage or (lambda _index: [])
        self._fast = fast

    def advance(self, block: nn.Module, index: int) -> None:
        """Run one loaded block; its outputs are the input of the next one."""
        outputs = self._storage(index + 1)
        self.hidden = run_windows(
            block, self.hidden, self.arguments[index], outputs, fast=self._fast
        )

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
        outputs = self._storage(index + 1) if advance else DISCARDED
        statistics, _ = collect_inputs(
            block, matrices, self.hidden, self.arguments[index], kinds, outputs=outputs
        )
        if advance:
            self.hidden = outputs
        return statistics


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
