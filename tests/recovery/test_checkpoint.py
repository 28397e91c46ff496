"""A checkpoint holds one state, whole, and lets go of what it no longer needs."""

from pathlib import Path

import pytest
import torch

from pruner_zero.recovery.checkpoint import Checkpoint
from tests.full_disk import full_disk
from tests.text.refusals import refusal


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"one": torch.full((3,), value), "two": torch.full((2, 2), -value)}


def commit(checkpoint: Checkpoint, step: int, best_step: int | None) -> None:
    moments = {"one.step": torch.tensor(float(step))}
    best = None if best_step is None else tensors(best_step)
    checkpoint.commit({"step": step}, tensors(step), moments, best, best_step or 0)


def same(actual: dict[str, torch.Tensor], value: float) -> bool:
    expected = tensors(value)
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


def test_the_last_state_is_read_back(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, "run").last is None
    commit(Checkpoint(tmp_path, "run"), 2, 2)
    commit(Checkpoint(tmp_path, "run"), 5, 2)
    again = Checkpoint(tmp_path, "run")
    assert again.last == {"step": 5}
    assert same(again.tensors("weights"), 5)
    assert same(again.tensors("best"), 2)
    assert float(again.tensors("moments")["one.step"]) == 5
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [
        "best-00000002.safetensors",
        "journal.jsonl",
        "moments-00000005.safetensors",
        "weights-00000005.safetensors",
    ]


def test_there_may_be_no_best(tmp_path: Path) -> None:
    commit(Checkpoint(tmp_path, "run"), 1, None)
    assert Checkpoint(tmp_path, "run").tensors("best") == {}


def test_a_state_committed_twice_is_written_once(tmp_path: Path) -> None:
    commit(Checkpoint(tmp_path, "run"), 3, 1)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    checkpoint = Checkpoint(tmp_path, "run")
    commit(checkpoint, 3, 1)
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    assert before == after
    assert same(Checkpoint(tmp_path, "run").tensors("weights"), 3)


def test_on_a_full_disk_the_state_before_stays(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "run")
    commit(checkpoint, 1, 1)
    large = {"one": torch.zeros(10_000)}
    with full_disk():
        line = refusal(lambda: checkpoint.commit({"step": 2}, large, {}, None, 0))
    assert "no space left" in line
    again = Checkpoint(tmp_path, "run")
    assert again.last == {"step": 1}
    assert same(again.tensors("weights"), 1)


@pytest.mark.parametrize("kind", ["weights", "moments", "best"])
def test_damage_is_noticed(kind: str, tmp_path: Path) -> None:
    commit(Checkpoint(tmp_path, "run"), 1, 1)
    file = next(tmp_path.glob(f"{kind}-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "is damaged" in refusal(lambda: Checkpoint(tmp_path, "run"))


def test_another_run_is_refused(tmp_path: Path) -> None:
    commit(Checkpoint(tmp_path, "run"), 1, 1)
    assert "other settings" in refusal(lambda: Checkpoint(tmp_path, "another"))
