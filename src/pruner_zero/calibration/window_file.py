"""Activations between two blocks on disk, one tensor for each window."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor

from pruner_zero.tensor_file import TensorFile, TensorWriter, writing_tensors

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
