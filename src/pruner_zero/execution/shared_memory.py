"""Values that hold tensors, packed so that several processes share one copy of the tensors."""

import io
import pickle
import tempfile
import warnings
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruner_zero.files import writing

_Bytes = NDArray[np.uint8]
Packed = tuple[bytes, list[_Bytes]]

# Products round alike wherever a tensor begins at a multiple of this many bytes.
_ALIGNMENT = 64


class PackedFile:
    """A packed value in an unnamed file, which is freed when the last process closes it.

    A child process gets it as one open file and maps the tensors from it, so that all processes
    share them: they must not be written to. Raises PrunerZeroError where the disk is full.
    """

    def __init__(self, value: Any) -> None:
        self.stream, arrays = pack(value)
        self.spans: list[tuple[int, int]] = []
        with writing(Path(tempfile.gettempdir())):
            self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            for array in arrays:
                self.file.seek(-self.file.tell() % _ALIGNMENT, io.SEEK_CUR)
                self.spans.append((self.file.tell(), array.nbytes))
                self.file.write(array.data)
            self.file.flush()

    def __getstate__(self) -> dict[str, Any]:
        """The state for a child that is being started: only then can an open file be passed on."""
        descriptor = reduction.DupFd(self.file.fileno())
        return {"stream": self.stream, "spans": self.spans, "descriptor": descriptor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.stream, self.spans = state["stream"], state["spans"]
        self.file = open(state["descriptor"].detach(), "rb")  # noqa: SIM115

    def read(self) -> Any:
        """The value, its tensors mapped."""
        whole = np.memmap(self.file, np.uint8, "r") if self.spans else np.empty(0, np.uint8)
        return unpack((self.stream, [whole[start : start + size] for start, size in self.spans]))


def pack(value: Any) -> Packed:
    """`value` pickled, with the bytes of its tensors in arrays that can be shared without a copy.

    Strides are kept, since sums depend on the order in which they are taken.
    """
    stream = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _Pickler(stream, buffers).dump(value)
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unpack(packed: Packed) -> Any:
    """What `pack` was given; the tensors lie in its arrays and must not be written to."""
    stream, arrays = packed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return pickle.loads(stream, buffers=arrays)


class _Pickler(pickle.Pickler):
    """Pickles a tensor of the CPU as its layout in its storage, which is pickled once."""

    def __init__(self, stream: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffers.append)
        self.storages: dict[int, _Bytes] = {}

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.device.type != "cpu" or not value.numel():
            return NotImplemented
        storage = value.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        array = self.storages.setdefault(storage.data_ptr(), whole)
        return _view, (array, value.dtype, value.size(), value.stride(), value.storage_offset())


def _view(array: _Bytes, dtype: torch.dtype, *place: Any) -> Tensor:
    count = array.nbytes // dtype.itemsize
    return torch.frombuffer(array, dtype=dtype, count=count).as_strided(*place)
