"""The fenced examples of the documentation, and the replacements of the names in them.

A block is run unless `<!-- not run: REASON -->` stands on the line before it. Models of the hub,
and the built-in model, become a tiny random model; corpora and files of the reader become made-up
words; the sizes in TINY are added to each command, after its own sizes, so that the sizes in TINY
win. The output in README.md is that of the real model: there, any number agrees with a number.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.docs.hooks import DOCS, ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.rglob("*.md")),
]

# A workspace (`test_examples.workspace`) also holds the model `my-model` and these texts.
MODEL = "my-model"
TEXTS = ("my-text.jsonl", "wiki.valid.raw", "wiki.test.raw")
REPLACED = {
    "builtin:smollm2-135m": MODEL,
    "HuggingFaceTB/SmolLM2-135M": MODEL,
    "wikitext2": "wiki.valid.raw",
    "c4": "wiki.valid.raw",
    "builtin:pydoc": "wiki.valid.raw",
}

_WINDOWS = ("--windows", "2", "--seqlen", "16")
TINY: dict[str, tuple[str, ...]] = {
    "prune": _WINDOWS,
    "compare": (*_WINDOWS, "--windows-eval", "2"),
    "evaluate": ("--windows", "2", "--seqlen", "16"),
    "search": (*_WINDOWS, "--search-windows", "2", "--evaluations", "12", "--workers", "1"),
    "recover": ("--steps", "2", "--batch", "1", "--seqlen", "16"),
}
# Added to the --config file of a search, which is made where there is none.
TINY_SEARCH: dict[str, Any] = {"algorithm_settings": {"initial": 12, "batch": 6}}

# Languages of blocks that hold nothing to run.
INERT = ("text",)


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, language and title, and why it is not run."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a console block with the output that is shown below it."""

    words: tuple[str, ...]
    shown: tuple[str, ...]


_FENCE = re.compile(r'^```(?P<language>\S*)(?: title="(?P<title>[^"]+)")?$')
_NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        if opening := _FENCE.match(lines[number]):
            end = lines.index("```", number + 1)
            reason = _NOT_RUN.match(lines[number - 1]) if number else None
            yield Block(
                page,
                number + 1,
                opening["language"],
                opening["title"],
                "\n".join(lines[number + 1 : end]),
                reason["reason"] if reason else None,
            )
            number = end
        number += 1


def commands(code: str) -> list[Command]:
    """The commands of a console block: lines after `$`, going on where one ends in a backslash."""
    entries: list[tuple[list[str], list[str]]] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            entries.append(([line[2:]], []))
        elif entries and entries[-1][0][-1].endswith("\\"):
            entries[-1][0].append(line)
        else:
            entries[-1][1].append(line)
    return [
        Command(tuple(shlex.split(_joined(text), comments=True)), tuple(shown))
        for text, shown in entries
    ]


def _joined(lines: list[str]) -> str:
    return " ".join(line.removesuffix("\\") for line in lines)


def replaced(text: str) -> str:
    """A word of a command, or a file, with the names in REPLACED replaced."""
    for name, replacement in REPLACED.items():
        text = re.sub(rf"(?<![\w/.-]){re.escape(name)}(?![\w/.-])", replacement, text)
    return text


def agrees(shown: tuple[str, ...], output: str) -> bool:
    """Whether the output matches `shown`: `…` stands for any text, alone in a line for lines."""
    if not shown:
        return True
    pattern = ".*".join(re.escape(part) for part in "\n".join(shown).split("…"))
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


def without_numbers(shown: tuple[str, ...]) -> tuple[str, ...]:
    """The shown lines with … in the place of every number and of several blanks."""
    return tuple(re.sub(r" *\d[\d.,]* *|  +", "…", line) for line in shown)
