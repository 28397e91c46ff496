"""What mkdocs calls: marks in the pages are replaced by what the program and its results say.

A mark is a comment alone on its line, `<!-- kind -->` or `<!-- kind: argument -->`; the kinds
are in `MARKS`. The benchmark pages join the site as they are.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import commands
import measured
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@cache
def _measurements() -> list[measured.Measurement]:
    return measured.read(BENCHMARKS / "results")


def _table(argument: str) -> str:
    page, _, heading = argument.partition("#")
    return measured.table_of(ROOT / page, heading or None)


def _include(argument: str) -> str:
    path = ROOT / argument
    language = {".py": "python"}.get(path.suffix, path.suffix[1:])
    return f'```{language} title="{argument}"\n{path.read_text()}```'


MARKS: dict[str, Callable[[str], str]] = {
    "command": commands.command,
    "metrics": lambda _: commands.metrics(),
    "operators": lambda _: commands.operators(),
    "steps": lambda _: commands.steps(),
    "terminals": lambda _: commands.terminals(),
    "formula": commands.formula,
    "include": _include,
    "table": _table,
    "choose": lambda _: measured.summary(_measurements()),
}

_MARK = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->$", re.MULTILINE)


def fill(markdown: str) -> str:
    """`markdown` with every mark replaced. Raises KeyError or ValueError for one that is wrong."""
    return _MARK.sub(lambda mark: MARKS[mark[1]](mark[2] or ""), markdown)


def on_config(config: Any) -> Any:
    """List the benchmark pages in the navigation, in the order of their names."""
    pages = [f"benchmarks/{page.name}" for page in sorted(BENCHMARKS.glob("*.md"))]
    for entry in config.nav:
        if "Measurements" in entry:
            entry["Measurements"] = pages
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the benchmark pages, and the figures and result files they link to."""
    linked = ("*.md", "*.svg", "results/*.json*")
    for path in sorted(path for pattern in linked for path in BENCHMARKS.glob(pattern)):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the marks of one page; links to the benchmarks lead to their pages in the site."""
    try:
        return fill(markdown.replace("](../benchmarks/", "](benchmarks/"))
    except (KeyError, ValueError, OSError) as error:
        raise PluginError(f"{page.file.src_uri}: {error!r}") from error
