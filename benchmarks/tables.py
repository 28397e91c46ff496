"""What benchmarks that write tables share."""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def measure_once(output: Path, again: bool, measure: Callable[..., object]) -> None:
    """Have `measure(output=…)` write the file by way of another one, unless it is there already."""
    if output.exists() and not again:
        return
    partial = output.with_suffix(".unfinished")
    measure(output=partial)
    partial.rename(output)


def machine() -> dict[str, Any]:
    """The facts of this machine that measured seconds depend on."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def zeros_title(name: str) -> str:
    """How a page calls the zeros that a table is named after: 50 is 50 %, 2-4 is 2:4."""
    return name.replace("-", ":") if "-" in name else f"{name} %"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
