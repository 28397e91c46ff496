"""The devices of this machine and their free memory; only `provenance` queries them too."""

import os
import platform
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError

CPU = torch.device("cpu")
_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_UNREADABLE = (OSError, ValueError, KeyError)

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")


@dataclass(frozen=True)
class Devices:
    """The devices that a model may be placed on, the preferred one first.

    spread: whether its blocks go to all of them; otherwise they go to as few as have room for them.
    """

    every: tuple[torch.device, ...] = (CPU,)
    spread: bool = False

    @property
    def first(self) -> torch.device:
        """The device for everything that is not split over devices."""
        return self.every[0]


def find_devices(asked: str = "auto", present: Sequence[torch.device] | None = None) -> Devices:
    """The devices that `asked` names: auto, cpu, mps, cuda, cuda:1, or a list cuda:0,cuda:1.

    auto: every cuda device, else the CPU; mps, which is untried, must be named. present: the
    devices to choose from, those of this machine where None. Raises PrunerZeroError naming them
    where `asked` is not among them.
    """
    present = present_devices() if present is None else present
    names = asked.split(",")
    if asked == "auto":
        names = [present[0].type if present[0].type == "cuda" else CPU.type]
    chosen: dict[torch.device, None] = {}
    for name in names:
        matching = [device for device in present if name.strip() in (str(device), device.type)]
        if not matching or (len(names) > 1 and matching[0].type != "cuda"):
            here = ", ".join(str(device) for device in present)
            raise PrunerZeroError(
                f"--device is '{asked}', and this machine has {here}: give auto, one of these, or "
                "several of cuda with commas between them"
            )
        chosen |= dict.fromkeys(matching)
    return Devices(tuple(chosen), spread=len(names) > 1)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` CPU threads inside; None leaves the number as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def present_devices() -> list[torch.device]:
    """All devices of this machine, the fastest kind first: every cuda, mps, the CPU."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return [*devices, CPU]


def free_bytes(device: torch.device) -> int:
    """The free memory of a cuda device, in bytes."""
    return torch.cuda.mem_get_info(device)[0]


def available_bytes(device: torch.device) -> int | None:
    """The bytes that this process can still take on a device; None where they are unknown.

    Of main memory, what is left to the machine and to the control groups of this process (limits of
    containers and batch systems); without /proc, all memory of the machine.
    """
    if device.type == "cuda":
        return free_bytes(device)
    found = [*_left_to_groups()]
    with suppress(AttributeError, *_UNREADABLE):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(*_UNREADABLE):
        found.append(1024 * _counters(_PROC / "meminfo")["MemAvailable:"])
    return min(found, default=None)


def _left_to_groups() -> Iterator[int]:
    """The bytes that each control group of this process can still take, of versions 1 and 2."""
    with suppress(*_UNREADABLE):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, limit, usage, total = _GROUPS, "memory.max", "memory.current", ""
            if controllers:
                root, total = _GROUPS / "memory", "total_"
                limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
            folder = root / group.lstrip("/")
            # A container may see its group as the root, under the path that it has outside.
            for level in (p for p in (folder, *folder.parents) if p.is_relative_to(root)):
                # A group without a limit has the word max, and the outermost group has no file.
                with suppress(*_UNREADABLE):
                    left = int((level / limit).read_text()) - int((level / usage).read_text())
                    pages = _counters(level / "memory.stat")
                    # Pages of files are counted as used, and are given up before memory runs out.
                    yield left + pages[f"{total}active_file"] + pages[f"{total}inactive_file"]


def _counters(path: Path) -> dict[str, int]:
    """The numbers of a file of the kernel by the first word of each line."""
    lines = map(str.split, path.read_text().splitlines())
    return {name: int(value) for name, value, *_ in lines}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, in main memory or on a device.

    Only CUDA's error has a type of its own. The CPU allocator, MPS and the operating system raise
    a RuntimeError or an OSError whose text says so.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    told = any(words in message for words in _OUT_OF_MEMORY)
    return told and isinstance(error, RuntimeError | OSError)


@contextmanager
def naming_out_of_memory(change: str) -> Iterator[None]:
    """Turn a failed allocation into a PrunerZeroError that names what to `change`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise PrunerZeroError(f"out of memory: {change}") from error


def has_fast_bfloat16(device: torch.device = CPU) -> bool:
    """Whether `device` multiplies bfloat16 natively, about twice as fast as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _has_instructions("avx512_bf16", "amx_bf16")


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Within the context, products of float32 matrices may round their factors to bfloat16.

    Sums stay float32, so that products of numbers that came from bfloat16 are as exact as before.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def emulated_dtypes() -> Collection[torch.dtype]:
    """The half-precision dtypes whose products this CPU emulates, which is many times slower.

    On x86, bfloat16 without AVX-512, and float16 without its own AVX-512 or AMX instructions.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    native = {
        torch.bfloat16: torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
        torch.float16: _has_instructions("avx512_fp16", "amx_fp16"),
    }
    return [dtype for dtype, has_products in native.items() if not has_products]


def _has_instructions(*names: str) -> bool:
    """Whether the CPU has any of the sets of instructions that torch knows by `names`."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in names)


def where_float64_is(tensor: Tensor) -> Tensor:
    """`tensor`, moved to the CPU if its device has no float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
