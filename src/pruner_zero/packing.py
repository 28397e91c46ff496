"""Values full of tensors as bytes that other processes map, so that they are in memory once."""

import io
import mmap
import pickle
import tempfile
import warnings
from multiprocessing import reduction
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Packed = tuple[bytes, list[Bytes]]

# Where products round alike, wherever the tensors lie.
_ALIGNMENT = 64


class PackedFile:
    """A packed value in a file without a name, which goes with the last process that has it.

    It travels to a child process as one open file, however many tensors there are; the tensors
    that a child reads from it are shared with all others, and only to be read.
    """

    def __init__(self, value: Any) -> None:
        self.stream, arrays = pack(value)
        self.spans: list[tuple[int, int]] = []
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        for array in arrays:
            self.file.seek(-self.file.tell() % _ALIGNMENT, io.SEEK_CUR)
            self.spans.append((self.file.tell(), array.nbytes))
            self.file.write(array.data)
        self.file.flush()

    def __getstate__(self) -> dict[str, Any]:
        """For a child that is being started, the only way that an open file can travel."""
        descriptor = reduction.DupFd(self.file.fileno())
        return {"stream": self.stream, "spans": self.spans, "descriptor": descriptor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.stream, self.spans = state["stream"], state["spans"]
        self.file = open(state["descriptor"].detach(), "rb")  # noqa: SIM115

    def read(self) -> Any:
        """The value, its tensors mapped."""
        if not self.spans:
            return unpack((self.stream, []))
        whole = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = [np.frombuffer(whole, np.uint8, size, start) for start, size in self.spans]
        return unpack((self.stream, arrays))


def pack(value: Any) -> Packed:
    """`value` pickled, with the bytes of its tensors apart, which can be shared uncopied.

    Strides stay as they are, since sums depend on the order in which they are taken.
    """
    stream = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(stream, buffers).dump(value)
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unpack(packed: Packed) -> Any:
    """What `pack` was given. Its tensors lie in the arrays: they are only to be read."""
    stream, arrays = packed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return pickle.loads(stream, buffers=arrays)


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffers.append)
        self.storages: dict[int, Bytes] = {}

    def reducer_override(self, value: Any) -> Any:
        """A tensor as its layout in its storage; tensors of one storage keep sharing it."""
        if type(value) is not Tensor or value.device.type != "cpu" or not value.numel():
            return NotImplemented
        storage = value.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        array = self.storages.setdefault(storage.data_ptr(), whole)
        layout = (value.size(), value.stride(), value.storage_offset())
        return _tensor, (array, value.dtype, *layout)


def _tensor(
    array: Bytes, dtype: torch.dtype, size: torch.Size, stride: tuple[int, ...], offset: int
) -> Tensor:
    whole = torch.frombuffer(array, dtype=dtype, count=array.nbytes // dtype.itemsize)
    return whole.as_strided(size, stride, offset)
