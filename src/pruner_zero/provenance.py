"""Where a result comes from: versions, the commit, the machine; and what it cost."""

import platform
import resource
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
    """Versions of everything that can change a number, the git commit, and the machine."""
    return {
        "pruner_zero": __version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


@dataclass
class Cost:
    """What a piece of work took: wall seconds, and the peak resident memory in bytes."""

    seconds: float = 0.0
    peak_rss_bytes: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure the work inside; the peak is its own where the system can reset it (Linux)."""
    cost = Cost()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = round(time.monotonic() - start, 2)
        cost.peak_rss_bytes = peak_rss_bytes()


def peak_rss_bytes() -> int:
    """The peak resident memory of this process in bytes, since start or the last reset."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _git_commit() -> str | None:
    """The commit of this checkout, with a mark where files differ; None where installed."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        run = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    return None
