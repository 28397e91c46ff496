"""The store reads back the statistics that it wrote, and counts a damaged kind as absent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pruner_zero.cache import cache_key
from pruner_zero.calibration.calibrate import StatisticsStore
from pruner_zero.files import sha256
from pruner_zero.tensor_file import TensorFile
from tests.full_disk import full_disk
from tests.text.refusals import refusal

SHARED = torch.arange(6.0).reshape(1, 6)
BLOCKS = {
    0: {"a": SHARED, "b": SHARED, "c": torch.ones(2, 3)},
    1: {"a": 2 * SHARED, "b": 3 * SHARED, "c": torch.ones(3, 2).T},
}


@pytest.fixture
def store(tmp_path: Path) -> StatisticsStore:
    """A store that holds X of two blocks."""
    store = StatisticsStore(tmp_path / "store")
    store.commit(
        {"X": {block: store.write("X", block, tensors) for block, tensors in BLOCKS.items()}}
    )
    return store


def test_written_statistics_are_read_back_by_any_process(store: StatisticsStore) -> None:
    for reader in (store, StatisticsStore(store.folder)):
        assert reader.has("X")
        for block, tensors in BLOCKS.items():
            stored = reader.read("X", block)
            assert stored.keys() == tensors.keys()
            assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
        stored = reader.read("X", 0)
        assert stored["a"] is stored["b"]


def test_the_same_statistics_are_the_same_bytes(store: StatisticsStore, tmp_path: Path) -> None:
    again = StatisticsStore(tmp_path / "other")
    assert again.write("X", 0, BLOCKS[0]) == store.write("X", 0, BLOCKS[0])
    first, second = (holder.folder / "X-0000.safetensors" for holder in (store, again))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("order", [list, reversed])
def test_a_shared_tensor_is_stored_once_in_any_order(order: Any, tmp_path: Path) -> None:
    StatisticsStore(tmp_path).write("X", 0, dict(order(BLOCKS[0].items())))
    with safe_open(tmp_path / "X-0000.safetensors", "pt") as file:
        assert len(file.keys()) == 2


def test_a_kind_that_was_never_written_or_not_finished_is_absent(store: StatisticsStore) -> None:
    store.write("G", 0, BLOCKS[0])
    assert not store.has("G")
    assert not store.has("gram")


def present(store: StatisticsStore) -> bool:
    """Whether a later process finds X."""
    return StatisticsStore(store.folder).has("X")


def test_a_file_is_hashed_once_by_a_store_and_never_by_the_store_that_wrote_it(
    store: StatisticsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr("pruner_zero.calibration.calibrate.sha256", counted)
    assert store.has("X")
    assert hashed == []
    again = StatisticsStore(store.folder)
    assert again.has("X")
    assert again.has("X")
    assert hashed == ["X-0000.safetensors", "X-0001.safetensors"]
    again.write("X", 0, BLOCKS[1])
    assert not again.has("X")


@pytest.mark.fault("a bit flipped in, or the end torn off, a file of the statistics cache")
@pytest.mark.parametrize("name", ["X.json", "X-0000.safetensors", "X-0001.safetensors"])
def test_a_flipped_byte_or_the_lack_of_a_file_makes_its_kind_absent(
    store: StatisticsStore, name: str
) -> None:
    path = store.folder / name
    data, meaningless = bytearray(path.read_bytes()), b" \n" if path.suffix == ".json" else b""
    for place in (place for place, byte in enumerate(data) if byte not in meaningless):
        data[place] ^= 1
        path.write_bytes(data)
        assert not present(store), place
        data[place] ^= 1
    path.write_bytes(data)
    assert present(store)
    path.unlink()
    assert not present(store)


@pytest.mark.fault("a bit flipped in, or the end torn off, a file of the statistics cache")
@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", "3", '{"X-0000.safetensors": 3}', "\udcff"]
)
def test_a_manifest_that_is_no_manifest_makes_its_kind_absent(
    store: StatisticsStore, text: str
) -> None:
    (store.folder / "X.json").write_bytes(text.encode(errors="surrogateescape"))
    assert not present(store)


@pytest.mark.parametrize("data", [b"", b"garbage", None])
def test_reading_a_broken_file_names_it(store: StatisticsStore, data: bytes | None) -> None:
    path = store.folder / "X-0001.safetensors"
    path.unlink() if data is None else path.write_bytes(data)
    assert str(path) in refusal(lambda: store.read("X", 1))


def test_a_lack_of_memory_while_reading_is_no_damage(
    store: StatisticsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TensorFile, "read", fail)
    with pytest.raises(torch.OutOfMemoryError):
        store.read("X", 0)


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = StatisticsStore(tmp_path / "file" / "store")
    message = refusal(lambda: store.write("X", 0, BLOCKS[0]))
    assert str(tmp_path / "file" / "store") in message


def test_the_key_depends_on_every_setting_and_not_on_their_order() -> None:
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert cache_key({"a": 1, "b": 2}) != cache_key({"a": 1, "b": 3})


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
def test_a_full_disk_is_one_line_and_leaves_the_kind_absent(tmp_path: Path) -> None:
    store = StatisticsStore(tmp_path)
    with full_disk():
        message = refusal(lambda: store.write("X", 0, {"a": torch.ones(100, 100)}))
    assert str(tmp_path / "X-0000.safetensors") in message
    assert "no space left" in message
    assert not store.has("X")
