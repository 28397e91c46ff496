"""Writes the generated parts of the pages: `python docs/hooks/fill.py` brings all up to date.

A generated part stands between `<!-- fill KIND: ARGUMENT -->` and `<!-- end -->`, each alone on
its line; the kinds are in `KINDS`. The filled pages are committed.
"""

import re
from collections.abc import Callable
from pathlib import Path

import commands
import walk

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md")))


def table(argument: str) -> str:
    """The table of a page, below the heading that follows `#` if there is one."""
    page, _, heading = argument.partition("#")
    return table_of(ROOT / page, heading)


def table_of(page: Path, heading: str = "") -> str:
    """The first Markdown table of `page`, below the heading of that text if one is given."""
    text = page.read_text()
    if heading:
        found = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"{page} has no heading '{heading}'")
        text = text[found.end() :]
    table = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    if table is None:
        raise ValueError(f"{page} has no table below '{heading}'")
    return table[0].rstrip("\n")


KINDS: dict[str, Callable[[str], str]] = {
    "commands": lambda _: commands.all_commands(),
    "metrics": lambda _: commands.metrics(),
    "operators": lambda _: commands.operators(),
    "terminals": lambda _: commands.terminals(),
    "table": table,
    "walk": lambda _: walk.picture(),
}
_PART = re.compile(
    r"^(?P<mark><!-- fill (?P<kind>\w+)(?:: (?P<argument>.+?))? -->)$.*?^<!-- end -->$",
    re.MULTILINE | re.DOTALL,
)


def fill(page: str) -> str:
    """`page` with every part made anew. Raises KeyError or ValueError for a mark that is wrong."""
    return _PART.sub(
        lambda part: (
            f"{part['mark']}\n\n{KINDS[part['kind']](part['argument'] or '')}\n\n<!-- end -->"
        ),
        page,
    )


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(fill(path.read_text()))
