"""Prompts that a model answers, read from a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError

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
        text = path.read_text("utf-8")
    except OSError as error:
        raise PrunerZeroError(f"--prompts: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PrunerZeroError(f"--prompts: {path} is not in UTF-8: {error.reason}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".json":
        entries = _decode(text, path, 1)
        if not isinstance(entries, list):
            raise PrunerZeroError(f"--prompts: {path} holds no list: give a list of prompts")
        prompts = [_prompt(entry, f"entry {n} of {path}") for n, entry in enumerate(entries, 1)]
    elif path.suffix == ".jsonl":
        where = [
            (_decode(line, path, number), f"line {number} of {path}") for number, line in lines
        ]
        prompts = [_prompt(entry, place) for entry, place in where]
    else:
        prompts = [_prompt(line.strip(), "") for _, line in lines]
    if not prompts:
        raise PrunerZeroError(f"--prompts: {path} holds no prompts: give one a line")
    return tuple(prompts)


def _decode(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        number = line + error.lineno - 1
        raise PrunerZeroError(
            f"--prompts: line {number} of {path} is no JSON: {error.msg}"
        ) from error


def _prompt(entry: Any, place: str) -> Prompt:
    if isinstance(entry, dict):
        entry = entry.get("messages", entry.get("text"))
    if isinstance(entry, str) and entry.strip():
        return ({"role": "user", "content": entry},)
    if isinstance(entry, list) and entry and all(map(_is_message, entry)):
        return tuple({name: message[name] for name in ("role", "content")} for message in entry)
    raise PrunerZeroError(
        f"--prompts: {place} is no prompt: give a text, or a list of messages with role and "
        "content, or either in an object, under text or messages"
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )
