"""Prompts that a model answers, read from a file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.documents import json_lines, read_json, read_stream

# The messages before an answer, each with a role and its content.
Prompt = Sequence[Mapping[str, str]]


def read_prompts(file: str | Path) -> tuple[Prompt, ...]:
    """The prompts of a file.

    Each line of a text file is one. Each line of a `.jsonl` file, and each element of the list in a
    `.json` file, is a text, a list of messages with `role` and `content`, or an object that has
    either under `text` or `messages`. Blank lines are left out. Raises PrunerZeroError, naming the
    line, for anything else, and where there are none.
    """
    path = Path(file)
    try:
        prompts = tuple(_prompt(entry, place) for place, entry in _entries(path))
    except PrunerZeroError as error:
        raise PrunerZeroError(f"self:{path}: {error}") from error
    if not prompts:
        raise PrunerZeroError(f"self:{path}: the file holds no prompts: give one a line")
    return prompts


def _entries(path: Path) -> Iterable[tuple[str, Any]]:
    """The place of each entry of a file, and what it holds."""
    if path.suffix == ".jsonl":
        return json_lines(path)
    text = read_stream(path)
    if path.suffix != ".json":
        lines = enumerate(text.split("\n"), 1)
        return [(f"{path}, line {number}", line.strip()) for number, line in lines if line.strip()]
    entries = read_json(text, str(path))
    if not isinstance(entries, list):
        raise PrunerZeroError(f"{path} holds no list: give a list of prompts")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _prompt(entry: Any, place: str) -> Prompt:
    if isinstance(entry, dict):
        entry = entry.get("messages", entry.get("text"))
    if isinstance(entry, str) and entry.strip():
        return ({"role": "user", "content": entry},)
    if isinstance(entry, list) and entry and all(map(_is_message, entry)):
        return tuple({name: message[name] for name in ("role", "content")} for message in entry)
    raise PrunerZeroError(
        f"{place} is no prompt: give a text, or a list of messages with role and "
        "content, or either in an object, under text or messages"
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )
