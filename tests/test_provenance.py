"""The provenance of results, and their cost in seconds and memory."""

import json
import time

import numpy as np
import pytest
import torch
import transformers

import pruner_zero
from pruner_zero.provenance import measured, peak_rss_bytes, provenance


def test_provenance_names_what_can_change_a_number() -> None:
    record = provenance()
    assert record["pruner_zero"] == pruner_zero.__version__
    assert record["torch"] == torch.__version__
    assert record["transformers"] == transformers.__version__
    assert record["numpy"] == np.__version__
    assert record["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(record)) == record


def test_provenance_is_the_same_every_time() -> None:
    assert provenance() == provenance()


def test_measured_counts_the_seconds_even_of_work_that_fails() -> None:
    try:
        with measured() as cost:
            time.sleep(0.05)
            raise ValueError
    except ValueError:
        pass
    assert 0.05 <= cost.seconds < 5
    assert cost.peak_rss_bytes > 0


def test_the_peak_of_earlier_work_does_not_count_again() -> None:
    with measured() as large:
        block = np.ones(40_000_000)
    del block
    with measured() as small:
        pass
    assert large.peak_rss_bytes - small.peak_rss_bytes > 200_000_000
    assert peak_rss_bytes() < large.peak_rss_bytes


class FakeCuda:
    """Two GPUs, of which the process uses the second; kernels end at `synchronize` alone."""

    def __init__(self, seconds: float) -> None:
        self.queued = seconds
        self.peak = 7 * 2**30

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, index: int) -> int:
        return index

    def get_device_name(self, index: int) -> str:
        assert index == 1
        return "NVIDIA Pretended"

    def synchronize(self, index: int) -> None:
        assert index == 1, "a GPU that is not used must not be initialised"
        time.sleep(self.queued)
        self.queued = 0.0

    def reset_peak_memory_stats(self, index: int) -> None:
        assert index == 1
        self.peak = 0

    def max_memory_allocated(self, index: int) -> int:
        assert index == 1
        return self.peak


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> FakeCuda:
    cuda = FakeCuda(seconds)
    for name in dir(FakeCuda):
        if not name.startswith("_"):
            monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    return cuda


def test_seconds_are_taken_after_the_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pretend(monkeypatch, seconds=0.3)
    with measured() as cost:
        # What was queued before the work began is not the work's.
        assert cuda.queued == 0
        cuda.queued = 0.1
    assert 0.1 <= cost.seconds < 0.3


def test_the_peak_of_the_gpu_is_that_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pretend(monkeypatch)
    with measured() as cost:
        cuda.peak = 3 * 2**30
    assert cost.peak_gpu_bytes == 3 * 2**30
    assert cost.to_json()["peak_gpu_bytes"] == 3 * 2**30


def test_provenance_names_the_gpus_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    record = provenance()
    assert (record["gpus"], record["cuda"]) == (["NVIDIA Pretended"], "12.8")


def test_without_a_gpu_nothing_is_said_of_one() -> None:
    with measured() as cost:
        pass
    assert cost.peak_gpu_bytes is None
    assert cost.to_json().keys() == {"seconds", "peak_rss_bytes"}
    assert {"gpus", "cuda"}.isdisjoint(provenance())
