"""What benchmarks that write tables share."""

from collections.abc import Callable, Sequence
from pathlib import Path


def measure_once(output: Path, again: bool, measure: Callable[..., object]) -> None:
    """Have `measure(output=…)` write the file by way of another one, unless it is there already."""
    if output.exists() and not again:
        return
    partial = output.with_suffix(".unfinished")
    measure(output=partial)
    partial.rename(output)


def zeros_title(name: str) -> str:
    """How a page calls the zeros that a table is named after: 50 is 50 %, 2-4 is 2:4."""
    return name.replace("-", ":") if "-" in name else f"{name} %"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
