"""Statistics of a model that stays on disk equal those of the loaded model, to the last bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate, open_store
from pruner_zero.calibration.statistics import Kind
from pruner_zero.journal import JOURNAL
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks
from pruner_zero.offload.model import OffloadedModel, load_offloaded
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import Windows, random_windows
from tests.conftest import save_sharded
from tests.offload.test_model import every_architecture_and_some_in_bfloat16
from tests.text.refusals import refusal
from tests.tiny import FOX, tiny_tokenizer

KINDS: tuple[Kind, ...] = ("G", "X", "O", "F", "P", "matrix_price", "block_price", "gram")


@pytest.fixture(scope="module")
def windows() -> Windows:
    return random_windows(Corpus("fox", FOX), tiny_tokenizer(), 4, 11, 0)


def assert_equal_stores(expected: StatisticsStore, actual: StatisticsStore) -> None:
    files = sorted(file.name for file in expected.folder.iterdir())
    assert sorted(file.name for file in actual.folder.iterdir()) == files
    for name in files:
        if name != ".lock":
            assert (expected.folder / name).read_bytes() == (actual.folder / name).read_bytes(), (
                name
            )


@every_architecture_and_some_in_bfloat16
def test_the_store_is_filled_with_the_same_bytes(
    architecture: str, dtype: torch.dtype, windows: Windows, tmp_path: Path
) -> None:
    folder = save_sharded(tmp_path / "model", architecture, dtype)
    loaded, offloaded = load_model(folder), load_offloaded(folder)
    loaded_store = open_store(loaded, windows, folder=tmp_path / "loaded")
    offloaded_store = open_store(offloaded, windows, folder=tmp_path / "offloaded")
    assert offloaded_store.folder.name == loaded_store.folder.name
    calibrate(loaded, windows, KINDS, loaded_store)
    calibrate(offloaded, windows, KINDS, offloaded_store)
    assert all(offloaded_store.has(kind) for kind in KINDS)
    assert any(G.any() for G in offloaded_store.read("G", 0).values())
    assert_equal_stores(loaded_store, offloaded_store)


@contextmanager
def loads(model: LanguageModel, stop_at: int | None = None) -> Iterator[list[int]]:
    """The blocks in the order of their computation; the `stop_at`-th of them is interrupted."""
    order: list[int] = []

    def hook(index: int) -> None:
        others = [block for place, block in enumerate(blocks) if place != index]
        assert all(p.stride() == (0,) * p.ndim for block in others for p in block.parameters())
        if not order or order[-1] != index:
            order.append(index)
            if len(order) == stop_at:
                raise KeyboardInterrupt

    if isinstance(model, OffloadedModel):
        # The check of its blocks, which reads each of them, is not counted.
        model.checked.append(True)
    blocks = find_blocks(model.model)
    handles = [
        next(iter(block.children())).register_forward_pre_hook(lambda *_, index=index: hook(index))
        for index, block in enumerate(blocks)
    ]
    yield order
    for handle in handles:
        handle.remove()


def test_one_block_is_in_memory_forward_and_backward(windows: Windows, tmp_path: Path) -> None:
    offloaded = load_offloaded(save_sharded(tmp_path / "model"))
    store = open_store(offloaded, windows, folder=tmp_path)
    with loads(offloaded) as order:
        calibrate(offloaded, windows, ["G"], store)
    # Forward, the first block once more to see how it is called, then backward.
    assert order == [0, 1, 2, 1, 0]


@pytest.mark.fault("Ctrl-C")
@pytest.mark.parametrize(
    ("kinds", "stop_at"),
    # Forward and backward load a block five times, forward alone three times.
    [
        *((("G",), stop_at) for stop_at in range(1, 6)),
        (("O",), 4),
        (("F",), 4),
        (("P",), 6),
        *((("X", "gram"), stop_at) for stop_at in range(1, 4)),
    ],
)
def test_an_interrupted_calibration_goes_on_with_the_same_block(
    kinds: tuple[Kind, ...], stop_at: int, windows: Windows, tmp_path: Path
) -> None:
    whole = load_offloaded(save_sharded(tmp_path / "model"))
    whole_store = open_store(whole, windows, folder=tmp_path / "whole")
    with loads(whole) as every:
        calibrate(whole, windows, kinds, whole_store)
    offloaded = load_offloaded(tmp_path / "model")
    resumed_store = open_store(offloaded, windows, folder=tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt), loads(offloaded, stop_at):
        calibrate(offloaded, windows, kinds, resumed_store)
    assert not resumed_store.has(kinds[0])
    again = load_offloaded(tmp_path / "model")
    with loads(again) as order:
        calibrate(again, windows, kinds, resumed_store)
    # How blocks are called is learned again from the first one.
    rest = every[stop_at - 1 :]
    assert order == rest if rest[0] == 0 and stop_at == 1 else order in (rest, [0, *rest])
    assert_equal_stores(whole_store, resumed_store)


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
@pytest.mark.parametrize("damage", ["inputs-0001.safetensors", JOURNAL, "../G-0002.safetensors"])
def test_a_damaged_part_is_computed_again(damage: str, windows: Windows, tmp_path: Path) -> None:
    whole = load_offloaded(save_sharded(tmp_path / "model"))
    whole_store = open_store(whole, windows, folder=tmp_path / "whole")
    calibrate(whole, windows, ["G"], whole_store)
    offloaded = load_offloaded(tmp_path / "model")
    damaged_store = open_store(offloaded, windows, folder=tmp_path / "damaged")
    with pytest.raises(KeyboardInterrupt), loads(offloaded, stop_at=4):
        calibrate(offloaded, windows, ["G"], damaged_store)
    file = damaged_store.folder / "gradients.partial" / damage
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    calibrate(load_offloaded(tmp_path / "model"), windows, ["G"], damaged_store)
    assert_equal_stores(whole_store, damaged_store)


def test_float16_is_refused_before_any_work(windows: Windows, tmp_path: Path) -> None:
    offloaded = load_offloaded(save_sharded(tmp_path / "model"), "float16")
    store = open_store(offloaded, windows, folder=tmp_path)
    with loads(offloaded) as order:
        message = refusal(lambda: calibrate(offloaded, windows, ["G"], store))
    assert "float16" in message
    assert order == []
