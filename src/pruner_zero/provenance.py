"""Where a result comes from: versions, the commit, the machine; and what it cost."""

import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pruner_zero.version import __version__


def provenance() -> dict[str, Any]:
    """Versions of everything that can change a number, the git commit, and the machine.

    Where this process has used GPUs, their names and the CUDA version are in it.
    """
    gpus = _gpus_in_use()
    names = [torch.cuda.get_device_name(index) for index in gpus]
    return {
        "pruner_zero": __version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in ("transformers", "numpy")},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **({"gpus": names, "cuda": torch.version.cuda} if gpus else {}),
    }


@dataclass
class Cost:
    """The time and memory of a piece of work.

    seconds: wall time, after all work queued on GPUs has finished. peak_rss_bytes: the peak
    resident main memory. peak_gpu_bytes: the peak memory that torch allocated on a GPU, of
    several the highest; None where the process has used none.
    """

    seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_gpu_bytes: int | None = None

    def to_json(self) -> dict[str, float | int]:
        """All fields as JSON values, without the GPU's where none was used."""
        return {name: value for name, value in vars(self).items() if value is not None}


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the work inside.

    The peak of main memory is that of the work alone where the system can reset it (Linux);
    elsewhere it is that of the process so far.
    """
    cost = Cost()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    wait_for_gpus()
    for index in _gpus_in_use():
        torch.cuda.reset_peak_memory_stats(index)
    start = time.monotonic()
    try:
        yield cost
    finally:
        wait_for_gpus()
        gpus = _gpus_in_use()
        cost.seconds = round(time.monotonic() - start, 2)
        cost.peak_rss_bytes = peak_rss_bytes()
        cost.peak_gpu_bytes = max(map(torch.cuda.max_memory_allocated, gpus), default=None)


def wait_for_gpus() -> None:
    """Return once all work queued on GPUs has finished: kernels run asynchronously."""
    for index in _gpus_in_use():
        torch.cuda.synchronize(index)


def peak_rss_bytes() -> int:
    """The peak resident memory of this process in bytes, since start or the last reset."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Windows has no such module.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpus_in_use() -> list[int]:
    """The indices of the CUDA devices on which this process holds memory.

    To ask or synchronise another one would initialise CUDA on it, which takes memory there.
    """
    if not torch.cuda.is_initialized():
        return []
    return [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]


def _git_commit() -> str | None:
    """The commit of this checkout, with a mark where files differ; None where installed."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        run = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    return None
