"""The devices that tensors can be on: the one module that asks this machine what it has."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError

CPU = torch.device("cpu")

_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")


@dataclass(frozen=True)
class Devices:
    """Where a model may be, the first of them best.

    spread: over all of them, where they were listed one by one; else on as few as hold it.
    """

    every: tuple[torch.device, ...] = (CPU,)
    spread: bool = False

    @property
    def first(self) -> torch.device:
        """Where all goes that is in one piece."""
        return self.every[0]


def find_devices(asked: str = "auto", present: Sequence[torch.device] | None = None) -> Devices:
    """The devices that `asked` names: auto, cpu, mps, cuda, cuda:1, or a list cuda:0,cuda:1.

    auto: every cuda device, else mps, else the CPU. present: what there is to choose from,
    this machine's where None. Raises PrunerZeroError naming them where there is no such device.
    """
    present = present_devices() if present is None else present
    names = asked.split(",")
    if asked == "auto":
        names = [present[0].type]
    chosen: dict[torch.device, None] = {}
    for name in names:
        own = [one for one in present if name.strip() in (str(one), one.type)]
        if not own or (len(names) > 1 and own[0].type != "cuda"):
            here = ", ".join(str(one) for one in present)
            raise PrunerZeroError(
                f"--device is '{asked}', and this machine has {here}: give auto, one of these, or "
                "several of cuda with commas between them"
            )
        chosen |= dict.fromkeys(own)
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
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, CPU]


def free_bytes(device: torch.device) -> int:
    """How much memory of a cuda device nobody has taken."""
    return torch.cuda.mem_get_info(device)[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, in main memory or on a device.

    Only CUDA's error has a type of its own. The CPU allocator, MPS and the operating system raise
    a RuntimeError or an OSError whose text says so.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(
        words in message for words in _OUT_OF_MEMORY
    )


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
        native: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return native
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def where_float64_is(tensor: Tensor) -> Tensor:
    """`tensor`, on the CPU where it comes from a device that has no float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
