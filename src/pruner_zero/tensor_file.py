"""Safetensors files read and written one tensor at a time, so no whole file is in memory.

The library's writer wants all tensors at once, contiguous and on the CPU. The format is the length
of a JSON header (8 bytes), the header, the tensors in turn.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pruner_zero.devices import is_out_of_memory
from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.files import committing, writing

# How much of a tensor is mapped at a time while it is read.
_MAPPED_ELEMENTS = 1 << 22


class TensorFile:
    """The tensors of one safetensors file, read on demand into memory of their own.

    It is mapped only while a part is read: mapped pages count as memory of the process. Raises
    PrunerZeroError where the file is truncated or not of this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            self.metadata: dict[str, str] = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            self._shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors together."""
        with open(self.path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
            return os.fstat(file.fileno()).st_size - 8 - header

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._shapes[name]

    def read(self, name: str, row: int | None = None) -> Tensor:
        """One tensor, or its part (1, …) at `row` of the first dimension."""
        shape = self._shapes[name]
        if not math.prod(shape) or not shape:
            with self._opened() as file:
                empty: Tensor = file.get_tensor(name)
                return empty.clone()
        first, last = (0, shape[0]) if row is None else (row, row + 1)
        step = max(1, _MAPPED_ELEMENTS // math.prod(shape[1:]))
        tensor: Tensor | None = None
        for start in range(first, last, step):
            # Opened anew for each part, so that the pages of the parts before are unmapped.
            with self._opened() as file:
                part = file.get_slice(name)[start : min(start + step, last)]
                if tensor is None:
                    tensor = torch.empty((last - first, *shape[1:]), dtype=part.dtype)
                tensor[start - first : start - first + len(part)] = part
                del part
        assert tensor is not None
        return tensor

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            if is_out_of_memory(error):
                raise
            raise PrunerZeroError(
                f"{self.path} is damaged ({one_line(error)}): fetch or make it again"
            ) from error


class TensorWriter:
    """Writes tensors to a file that `writing_tensors` opened."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256 of everything written so far."""
        return self._digest.hexdigest()

    def write(self, tensor: Tensor) -> None:
        """Write the next tensor of the layout, or a part of it."""
        values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        self.write_bytes(memoryview(values))

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Write bytes of the format."""
        self._file.write(data)
        self._digest.update(data)


@contextmanager
def writing_tensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[TensorWriter]:
    """Write one safetensors file, its tensors one after the other in the order of `layout`.

    layout: dtype and shape by name. The file exists once the context ends, and not before; an error
    within it deletes what was written. Raises PrunerZeroError where it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _name(dtype), "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded, because tensors must begin at a multiple of their element size.
    text += b" " * (-len(text) % 8)
    with writing(path), committing(path) as partial, open(partial, "wb") as file:
        writer = TensorWriter(file)
        writer.write_bytes(len(text).to_bytes(8, "little") + text)
        yield writer
        if left := 8 + len(text) + end - file.tell():
            raise ValueError(f"{path} lacks {left} bytes of its layout")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file without a copy of its tensors; return its SHA-256.

    As with `write_atomic`, a reader sees all of it or none. Raises PrunerZeroError.
    """
    # Wide dtypes first, so that every tensor begins at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    layout = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in order}
    with writing_tensors(path, layout, metadata) as writer:
        for name in order:
            writer.write(tensors[name])
    return writer.sha256


@cache
def _name(dtype: torch.dtype) -> str:
    """The name of `dtype` in the format, taken from a file that safetensors makes."""
    file = save({"empty": torch.empty(0, dtype=dtype)})
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    return str(header["empty"]["dtype"])
