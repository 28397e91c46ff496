"""The messages on the page of troubles are those that the program has."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.docs.hooks import DOCS, ROOT

MESSAGES = re.findall(r"^`(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def texts() -> Iterator[str]:
    """Every string in the source, `…` for what is put in."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )


def in_short(text: str) -> str:
    """With one … where several things are put in side by side."""
    return re.sub("…+", "…", text)


SOURCE = {in_short(text) for text in texts()}


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_has_the_message(message: str) -> None:
    assert message in SOURCE


def test_a_message_that_nobody_raises_is_noticed() -> None:
    assert f"{MESSAGES[0]} now" not in SOURCE
