"""What the scripts of benchmarks share."""

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the first line of a script's docstring."""
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def results(name: str) -> Path:
    """A file under benchmarks/results."""
    return HERE / "results" / name


def write_page(name: str, text: str) -> None:
    """Write a page of benchmarks, with its notes (results/NAME-notes.md) at the end."""
    notes = results(f"{name}-notes.md")
    parts = [text.rstrip(), *([notes.read_text().rstrip()] if notes.exists() else [])]
    (HERE / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def machine() -> dict[str, Any]:
    """The facts of this machine that measured seconds depend on."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def cut(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[n] for n in kept], [[row[n] for n in kept] for row in rows]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
