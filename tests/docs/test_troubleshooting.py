"""Every message on the troubleshooting page exists in the program."""

import ast
import re
from collections.abc import Iterator

from tests.docs.hooks import DOCS, ROOT

MESSAGES = re.findall(r"^`(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def texts() -> Iterator[str]:
    """Every string in the source, with `…` for each inserted value."""
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
    """The text with one … for several adjacent inserted values."""
    return re.sub("…+", "…", text)


SOURCE = {in_short(text) for text in texts()}


def test_the_program_has_the_messages_of_the_page() -> None:
    assert len(MESSAGES) > 30
    assert [message for message in MESSAGES if message not in SOURCE] == []
    assert f"{MESSAGES[0]} now" not in SOURCE
