"""Prompts from files of lines, of JSON and of JSON lines."""

import json
from pathlib import Path

import pytest

from pruner_zero.text.prompts import read_prompts
from tests.text.refusals import refusal

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]
ALONE = ({"role": "user", "content": "Why?"},)


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_each_line_of_a_text_is_a_prompt(tmp_path: Path) -> None:
    prompts = read_prompts(file(tmp_path, "a.txt", "Why?\n\n  How so?\r\n"))
    assert prompts == (ALONE, ({"role": "user", "content": "How so?"},))


def test_json_has_texts_and_messages(tmp_path: Path) -> None:
    entries = ["Why?", MESSAGES, {"messages": MESSAGES, "id": 3}, {"text": "Why?", "id": 4}]
    expected = (ALONE, tuple(MESSAGES), tuple(MESSAGES), ALONE)
    lines = "\n\n".join(map(json.dumps, entries))
    assert read_prompts(file(tmp_path, "a.jsonl", lines)) == expected
    assert read_prompts(file(tmp_path, "a.json", json.dumps(entries, indent=1))) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n", "holds no prompts"),
        ("a.json", "[]", "holds no prompts"),
        ("a.json", '"Why?"', "holds no list"),
        ("a.json", '["Why?",\n,]', "line 2, column 1"),
        ("a.jsonl", '"Why?"\n\n{', "line 3 is not JSON"),
        ("a.jsonl", '"Why?"\n[]', "line 2 is no prompt"),
        ("a.jsonl", '" "', "line 1 is no prompt"),
        ("a.jsonl", '{"words": "Why?"}', "under text or messages"),
        ("a.json", '["Why?", [{"role": "user"}]]', "entry 2 is no prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = file(tmp_path, name, text)
    line = refusal(lambda: read_prompts(path))
    assert line.startswith(f"self:{path}: ")
    assert message in line
    assert str(path) in line


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(lambda: read_prompts(tmp_path / "none.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert "is not UTF-8" in refusal(lambda: read_prompts(tmp_path / "b.txt"))
