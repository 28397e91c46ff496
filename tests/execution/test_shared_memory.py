"""Packed tensors come back as they were, in memory that several processes share."""

import errno
import tempfile

import pytest
import torch

from pruner_zero.execution.shared_memory import PackedFile, pack, unpack
from tests.text.refusals import refusal


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.bfloat16).view(4, 6)
    examples = {
        "base": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "mask": base > 4,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    examples["tied"] = examples["parameter"]
    return examples


def test_what_is_packed_comes_back_as_it_was_and_shares_the_arrays() -> None:
    originals = tensors()
    stream, arrays = pack(originals)
    read: dict[str, torch.Tensor] = unpack((stream, arrays))
    for name, tensor in originals.items():
        assert torch.equal(read[name], tensor)
        assert read[name].stride() == tensor.stride()
        assert read[name].dtype == tensor.dtype
        assert type(read[name]) is type(tensor)
    assert read["tied"] is read["parameter"]
    # One array for `base` and its views, one for each of mask, scalar and parameter.
    assert sorted(array.nbytes for array in arrays) == [4, 24, 24, 48]
    starts = {array.ctypes.data for array in arrays}
    assert {
        tensor.untyped_storage().data_ptr() for tensor in read.values() if tensor.numel()
    } == starts


def test_a_full_folder_of_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    line = refusal(lambda: PackedFile(tensors()))
    assert line.startswith(tempfile.gettempdir())
    assert "no space left" in line


def test_a_packed_file_gives_the_value_to_every_reader() -> None:
    originals = tensors()
    file = PackedFile(originals)
    for read in (file.read(), file.read()):
        assert all(torch.equal(read[name], tensor) for name, tensor in originals.items())
