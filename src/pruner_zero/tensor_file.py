"""Safetensors files read and written one tensor at a time, so that no file is ever in memory.

The library's own reader maps the file, whose pages then count as memory of the process for as
long as it is open, and its writer wants a second copy of everything. The format itself is plain:
the length of a JSON header (8 bytes), the header, the tensors one after the other.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import writing

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The library's own limit. A sparse file can claim any length, and would fill the memory with it.
_LONGEST_HEADER = 100_000_000
_MALFORMED = (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError)


class TensorFile:
    """The tensors of one safetensors file, read on demand into memory of their own.

    Raises PrunerZeroError where the file is not whole or not of this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                size = os.fstat(file.fileno()).st_size
                if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                    raise ValueError("its header does not fit in it")
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self._start = 8 + length
            self._entries = {name: _Entry(**entry) for name, entry in header.items()}
            for name, entry in self._entries.items():
                entry.check(name, size - self._start)
        except (*_MALFORMED, OSError) as error:
            raise PrunerZeroError(
                f"{path} is damaged ({' '.join(str(error).split())}): fetch or make it again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        return sum(entry.stop - entry.start for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        return self._entries[name].dtype

    def read(self, name: str, row: int | None = None) -> Tensor:
        """One tensor, or its part (1, …) at `row` of the first dimension."""
        entry = self._entries[name]
        shape = entry.shape if row is None else (1, *entry.shape[1:])
        tensor = torch.empty(shape, dtype=entry.dtype)
        buffer = memoryview(_bytes(tensor))
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + entry.start + (row or 0) * len(buffer))
            while buffer:
                read = file.readinto(buffer)
                if not read:
                    raise PrunerZeroError(f"{self.path} is damaged: fetch or make it again")
                buffer = buffer[read:]
        return tensor


class TensorWriter:
    """One safetensors file, its tensors given one after the other in the order of `layout`.

    The file is there once `close` returns, and not before; leaving a `with` by an error
    leaves nothing. Raises PrunerZeroError where it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        layout: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.sha256 = ""
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._digest = hashlib.sha256()
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name, (dtype, shape) in layout.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # Padded so that the tensors begin where every dtype may.
        text += b" " * (-len(text) % 8)
        with writing(path):
            self._file = open(self._partial, "wb")  # noqa: SIM115
        self._left = end
        self._write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """The next tensor of the layout, or a part of it."""
        data = memoryview(_bytes(tensor.detach().cpu().contiguous()))
        self._left -= len(data)
        self._write(data)

    def close(self) -> str:
        """Wait until the file is on disk under its name; return its SHA-256."""
        if self._left:
            self.abandon()
            raise ValueError(f"{self.path} lacks {self._left} bytes of its layout")
        try:
            with writing(self.path):
                self._commit()
        except PrunerZeroError:
            self.abandon()
            raise
        self.sha256 = self._digest.hexdigest()
        return self.sha256

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None and not self.sha256:
            self.close()
        elif kind is not None:
            self.abandon()

    def _commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            with writing(self.path):
                self._file.write(data)
        except PrunerZeroError:
            self.abandon()
            raise
        self._digest.update(data)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file without a copy of its tensors; return its SHA-256.

    As with `write_atomic`, a reader sees all of it or none. Raises PrunerZeroError.
    """
    # Wide dtypes first: each tensor then lies where its dtype may.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    layout = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in order}
    with TensorWriter(path, layout, metadata) as writer:
        for name in order:
            writer.write(tensors[name])
    return writer.sha256


class _Entry:
    def __init__(self, dtype: str, shape: list[int], data_offsets: list[int]) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"its dtype {dtype} is not known")
        self.dtype = _DTYPES[dtype]
        self.shape = tuple(int(one) for one in shape)
        self.start, self.stop = data_offsets

    def check(self, name: str, size: int) -> None:
        expected = math.prod(self.shape) * self.dtype.itemsize
        fits = self.stop - self.start == expected and 0 <= self.start <= self.stop <= size
        if not fits or min(self.shape, default=0) < 0:
            raise ValueError(f"{name} does not fit in it")


def _bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous `tensor` as uint8 in one dimension, shared."""
    return tensor.flatten().view(torch.uint8).numpy()
