"""Devices by name: which are found or refused, and that no other module asks the machine."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

import pruner_zero
from pruner_zero.devices import (
    CPU,
    Devices,
    available_bytes,
    find_devices,
    is_out_of_memory,
    naming_out_of_memory,
    present_devices,
)
from pruner_zero.errors import PrunerZeroError

SOURCE = Path(pruner_zero.__file__).parent
CUDA = [torch.device("cuda", 0), torch.device("cuda", 1)]
MPS = torch.device("mps")
TWO_GPUS = [*CUDA, CPU]


@pytest.mark.parametrize(
    ("device", "present", "expected"),
    [
        ("auto", TWO_GPUS, CUDA),
        ("auto", [MPS, CPU], [CPU]),
        ("auto", [CPU], [CPU]),
        ("cpu", TWO_GPUS, [CPU]),
        ("cuda", TWO_GPUS, CUDA),
        ("cuda:1", TWO_GPUS, CUDA[1:]),
        ("mps", [MPS, CPU], [MPS]),
    ],
)
def test_a_device_name_resolves_to_its_devices(
    device: str, present: list[torch.device], expected: list[torch.device]
) -> None:
    assert find_devices(device, present) == Devices(tuple(expected))
    assert find_devices(device, present).first == expected[0]


def test_a_list_of_devices_keeps_its_order_and_is_used_as_a_whole() -> None:
    assert find_devices("cuda:1,cuda:0", TWO_GPUS) == Devices((CUDA[1], CUDA[0]), spread=True)
    assert find_devices("cuda:1, cuda", TWO_GPUS) == Devices((CUDA[1], CUDA[0]), spread=True)


@pytest.mark.parametrize("device", ["gpu", "cuda:2", "mps", "", "cuda:0,", "cuda:0,cpu", "cuda:x"])
def test_an_absent_device_is_refused_and_the_present_ones_are_named(device: str) -> None:
    with pytest.raises(PrunerZeroError) as refused:
        find_devices(device, TWO_GPUS)
    message = str(refused.value)
    assert f"--device is '{device}', and this machine has cuda:0, cuda:1, cpu: give" in message
    assert "\n" not in message


def test_this_machine_has_a_cpu_and_it_comes_last() -> None:
    assert present_devices()[-1] == CPU


def test_one_module_asks_the_machine_for_devices_and_another_measures_them() -> None:
    asks = re.compile(r"\.cuda\(|torch\.cuda|torch\.mps|torch\.backends|torch\.accelerator")
    modules = {path.name for path in SOURCE.rglob("*.py") if asks.search(path.read_text())}
    assert modules == {"devices.py", "provenance.py"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_failed_allocation_is_told_from_its_type_or_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(PrunerZeroError, match=r"^out of memory: choose fewer --windows$"),
        naming_out_of_memory("choose fewer --windows"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Cannot pin memory of a sparse tensor"),
        ValueError("out of memory"),
    ],
)
def test_no_other_error_is_taken_for_a_failed_allocation(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), naming_out_of_memory("choose fewer --windows"):
        raise error


def test_the_allocation_error_of_torch_is_recognised() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert is_out_of_memory(failed.value)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | None]:
    """The memory available on a machine with these files, of 64 GiB of which 48 are free."""

    def run(files: Mapping[str, object]) -> int | None:
        memory = f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\nHugePages_Free: 0"
        for name, content in {"proc/meminfo": memory, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")
        return available_bytes(CPU)

    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 4096}.__getitem__)
    monkeypatch.setattr("pruner_zero.devices._PROC", tmp_path / "proc")
    monkeypatch.setattr("pruner_zero.devices._GROUPS", tmp_path / "groups")
    return run


PAGES = f"anon 1\ninactive_file {2**30}\nactive_file {2 * 2**30}"
SECOND: dict[str, object] = {"memory.max": 8 * 2**30, "memory.current": 6 * 2**30}
SECOND["memory.stat"] = PAGES
FIRST: dict[str, object] = {"memory.limit_in_bytes": 8 * 2**30, "memory.usage_in_bytes": 6 * 2**30}
FIRST["memory.stat"] = PAGES + f"\ntotal_inactive_file {2**30}\ntotal_active_file 0"


def within(folder: str, files: Mapping[str, object]) -> dict[str, object]:
    return {f"groups/{folder}{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("files", "gibibytes"),
    [
        ({}, 48),
        ({"proc/meminfo": "MemAvailable: 3145728 kB"}, 3),
        ({"proc/self/cgroup": "0::/", **within("", SECOND)}, 5),
        ({"proc/self/cgroup": "0::/a/b", **within("a/", SECOND)}, 5),
        ({"proc/self/cgroup": "0::/a", **within("a/", {**SECOND, "memory.max": "max"})}, 48),
        ({"proc/self/cgroup": "4:memory:/job\n0::/", **within("memory/job/", FIRST)}, 3),
        # The path is that on the host, and the container sees its group as the root.
        ({"proc/self/cgroup": "4:memory:/docker/1", **within("memory/", FIRST)}, 3),
        ({"proc/self/cgroup": "5:cpu,cpuacct:/job", **within("memory/job/", FIRST)}, 48),
    ],
)
def test_available_is_what_the_machine_and_the_limits_of_a_container_leave(
    files: Mapping[str, object], gibibytes: int, machine: Callable[..., int | None]
) -> None:
    assert machine(files) == gibibytes * 2**30


def test_this_machine_tells_its_memory() -> None:
    available = available_bytes(CPU)
    assert available is not None
    assert available > 0


def test_a_system_that_does_not_tell_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setattr("pruner_zero.devices._PROC", tmp_path)
    assert available_bytes(CPU) is None
