"""Writes the generated parts of the pages: `python docs/hooks/fill.py` brings all up to date.

A generated part stands between `<!-- fill KIND -->` and `<!-- end -->`, each alone on
its line; the kinds are in `KINDS`. The filled pages are committed.
"""

import re
from collections.abc import Callable
from pathlib import Path

import commands
import walk

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md")))
KINDS: dict[str, Callable[[], str]] = {
    "commands": commands.all_commands,
    "metrics": commands.metrics,
    "operators": commands.operators,
    "terminals": commands.terminals,
    "walk": walk.picture,
}
_PART = re.compile(r"^(<!-- fill (\w+) -->)$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


def fill(page: str) -> str:
    """`page` with every part made anew. Raises KeyError for a mark that is wrong."""
    return _PART.sub(lambda part: f"{part[1]}\n\n{KINDS[part[2]]()}\n\n<!-- end -->", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(fill(path.read_text()))
