"""What benchmarks that write tables share."""

from collections.abc import Callable
from pathlib import Path


def measure_once(output: Path, again: bool, measure: Callable[..., object]) -> None:
    """Have `measure(output=…)` write the file by way of another one, unless it is there already."""
    if output.exists() and not again:
        return
    partial = output.with_suffix(".unfinished")
    measure(output=partial)
    partial.rename(output)
