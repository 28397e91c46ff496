"""Safetensors files, written and read a tensor at a time, are those of the safetensors library."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruner_zero.files import sha256
from pruner_zero.tensor_file import TensorFile, write_tensors, writing_tensors
from tests.full_disk import full_disk
from tests.text.refusals import refusal


def every_kind() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 5, generator=generator) * 50
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    unsigned = (torch.uint64, torch.uint32, torch.uint16)
    narrow = (torch.float8_e4m3fn, torch.float8_e5m2)
    return {
        **{str(dtype): values.to(dtype) for dtype in (*dtypes, *integers, *narrow)},
        **{str(dtype): values.abs().to(dtype) for dtype in unsigned},
        "turned": values.T,
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert expected[name].dtype == tensor.dtype
        assert torch.equal(expected[name], tensor), name


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", every_kind()
    digest = write_tensors(path, tensors, {"format": "pt"})
    assert_equal(load_file(path), tensors)
    assert digest == sha256(path)
    assert TensorFile(path).metadata == {"format": "pt"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_of_the_library_are_read_into_aligned_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in every_kind().items()}
    save_file(tensors, path)
    file = TensorFile(path)
    assert_equal({name: file.read(name) for name in file}, tensors)
    assert all(file.read(name).data_ptr() % 64 == 0 for name in file)
    assert all(file.shape(name) == tuple(tensors[name].shape) for name in file)
    assert file.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())


def test_one_row_is_read_alone(tmp_path: Path) -> None:
    stacked = torch.randn(5, 3, 2)
    write_tensors(tmp_path / "x", {"before": torch.ones(9), "rows": stacked})
    file = TensorFile(tmp_path / "x")
    for row in range(5):
        assert torch.equal(file.read("rows", row), stacked[row : row + 1])


def test_a_tensor_may_be_written_in_parts(tmp_path: Path) -> None:
    rows = torch.randn(4, 3)
    with writing_tensors(tmp_path / "x", {"rows": (torch.float32, (4, 3))}) as writer:
        for row in rows:
            assert not (tmp_path / "x").exists()
            writer.write(row)
    assert torch.equal(load_file(tmp_path / "x")["rows"], rows)
    assert writer.sha256 == sha256(tmp_path / "x")


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    layout = {"rows": (torch.float32, (4, 3))}

    def interrupted() -> None:
        with writing_tensors(tmp_path / "x", layout) as writer:
            writer.write(torch.ones(3))
            raise KeyboardInterrupt

    def incomplete() -> None:
        with writing_tensors(tmp_path / "x", layout) as writer:
            writer.write(torch.ones(3))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="lacks 36 bytes"):
        incomplete()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
# What is small is refused only once the file is closed.
@pytest.mark.parametrize("size", [40, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(size: int, tmp_path: Path) -> None:
    with full_disk(room=100):
        message = refusal(lambda: write_tensors(tmp_path / "x", {"big": torch.ones(size)}))
    assert "no space left" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a safetensors file with a lying header, or a bomb in its place")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="truncated"),
        pytest.param(lambda data: data[:4], id="no header"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="header length"),
        pytest.param(lambda data: data[:9] + b"\xff" + data[10:], id="header"),
        pytest.param(lambda data: data.replace(b"F32", b"F99"), id="dtype"),
        pytest.param(lambda data: data.replace(b"[4,3]", b"[4,4]"), id="shape"),
        pytest.param(lambda data: data.replace(b'"shape"', b'"shane"'), id="key"),
        pytest.param(lambda data: b"", id="empty"),
    ],
)
def test_a_damaged_file_is_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"rows": torch.ones(4, 3)})
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is damaged" in refusal(lambda: TensorFile(path))


@pytest.mark.fault(
    "a model's weights file truncated, garbled, or lacking a tensor",
    "refused in one line that names it; nothing is filled in",
)
def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"rows": torch.ones(4, 3)})
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert "is damaged" in refusal(lambda: file.read("rows"))


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions of safetensors before 0.8 say that the system could not map the file."""

    def fail(*_: object) -> None:
        raise OSError("Cannot allocate memory (os error 12)")

    write_tensors(tmp_path / "x", {"rows": torch.ones(4, 3)})
    file = TensorFile(tmp_path / "x")
    monkeypatch.setattr("pruner_zero.tensor_file.safe_open", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        file.read("rows")
