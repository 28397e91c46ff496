"""The journal of a training holds one state, whole, and no tensors that it no longer needs."""

from pathlib import Path

import pytest
import torch

from pruner_zero.journal import Journal
from pruner_zero.recovery.train import commit_state, saved_tensors
from tests.full_disk import full_disk
from tests.text.refusals import refusal

RUN = {"--seed": 0}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"one": torch.full((3,), value), "two": torch.full((2, 2), -value)}


def commit(journal: Journal, step: int, best_step: int | None) -> None:
    moments = {"one.step": torch.tensor(float(step))}
    kinds = {"weights": (step, tensors(step)), "moments": (step, moments)}
    if best_step is not None:
        kinds["best"] = (best_step, tensors(best_step))
    commit_state(journal, step, {"seconds": step}, kinds)


def same(actual: dict[str, torch.Tensor], value: float) -> bool:
    expected = tensors(value)
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


def test_the_last_state_is_read_back(tmp_path: Path) -> None:
    assert Journal(tmp_path, RUN).finished == 0
    commit(Journal(tmp_path, RUN), 2, 2)
    commit(Journal(tmp_path, RUN), 5, 2)
    again = Journal(tmp_path, RUN)
    assert (again.finished, again.lines[-1]["state"]) == (5, {"seconds": 5})
    assert same(saved_tensors(again, "weights"), 5)
    assert same(saved_tensors(again, "best"), 2)
    assert float(saved_tensors(again, "moments")["one.step"]) == 5
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [
        "best-00000002.safetensors",
        "journal.jsonl",
        "moments-00000005.safetensors",
        "weights-00000005.safetensors",
    ]


def test_there_may_be_no_best(tmp_path: Path) -> None:
    commit(Journal(tmp_path, RUN), 1, None)
    assert saved_tensors(Journal(tmp_path, RUN), "best") == {}


def test_a_state_committed_twice_is_written_once(tmp_path: Path) -> None:
    commit(Journal(tmp_path, RUN), 3, 1)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    journal = Journal(tmp_path, RUN)
    commit(journal, 3, 1)
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    assert before == after
    assert same(saved_tensors(Journal(tmp_path, RUN), "weights"), 3)


def test_on_a_full_disk_the_state_before_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN)
    commit(journal, 1, 1)
    large = {"one": torch.zeros(10_000)}
    with full_disk():
        line = refusal(lambda: commit_state(journal, 2, {}, {"weights": (2, large)}))
    assert "no space left" in line
    again = Journal(tmp_path, RUN)
    assert (again.finished, again.lines[-1]["state"]) == (1, {"seconds": 1})
    assert same(saved_tensors(again, "weights"), 1)


@pytest.mark.parametrize("kind", ["weights", "moments", "best"])
def test_damage_is_noticed(kind: str, tmp_path: Path) -> None:
    commit(Journal(tmp_path, RUN), 1, 1)
    file = next(tmp_path.glob(f"{kind}-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "is damaged" in refusal(lambda: Journal(tmp_path, RUN))


def test_another_run_is_refused(tmp_path: Path) -> None:
    commit(Journal(tmp_path, RUN), 1, 1)
    assert "other settings" in refusal(lambda: Journal(tmp_path, {"--seed": 1}))
