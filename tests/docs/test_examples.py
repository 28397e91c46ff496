"""Every example of README, CONTRIBUTING and docs/ runs and prints the output on its page.

The blocks of a page run from top to bottom in one folder, as a reader would. A block that is not
run is skipped here with its reason.
"""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli, cli
from tests.conftest import save_tiny
from tests.docs import examples
from tests.docs.examples import PAGES, Block, agrees, blocks, commands, replaced, without_numbers
from tests.docs.hooks import ROOT

__all__ = ["cli"]

ALL = [block for page in PAGES for block in blocks(page)]
RUNNING = [page for page in PAGES if any(block.page == page and not block.not_run for block in ALL)]


@pytest.fixture
def workspace(tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder."""
    # Of six blocks, a tenth is one.
    save_tiny(tmp_path / examples.MODEL, blocks=6)
    for name in examples.TEXTS:
        document = json.dumps({"text": prose}) if name.endswith(".jsonl") else prose
        (tmp_path / name).write_text(document)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_from_top_to_bottom(
    page: Path, workspace: Path, cli: Cli
) -> None:
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page):
        if block.not_run is None:
            _run(block, workspace, names, cli)


@pytest.mark.parametrize("block", [block for block in ALL if block.not_run], ids=str)
def test_not_run(block: Block) -> None:
    if block.language == "python":
        compile(block.code, str(block), "exec")
    pytest.skip(str(block.not_run))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_hides_from_these_tests(page: Path) -> None:
    lines = [line.lstrip() for line in page.read_text().splitlines()]
    fences = sum(line.startswith("```") for line in lines)
    page_blocks = list(blocks(page))
    assert fences == 2 * len(page_blocks), "an indented or unclosed fence"
    for block in page_blocks:
        handled = block.language in RUNNERS or block.language in examples.INERT
        assert handled, f"{block}: the language '{block.language}' is not run"


@pytest.mark.parametrize(
    ("shown", "output", "same"),
    [
        (("a … c", "…"), "a b c\nmore\nlines", True),
        (("a", "…", "d"), "a\nb\nd", True),
        (("a",), "a\nb", False),
        (("…: b",), "a: c", False),
    ],
)
def test_shown_output_is_compared(shown: tuple[str, ...], output: str, same: bool) -> None:
    assert agrees(shown, output) is same


def _run(block: Block, folder: Path, names: dict[str, object], cli: Cli) -> None:
    if block.language not in examples.INERT:
        RUNNERS[block.language](block, folder, names, cli)


def _run_python(block: Block, folder: Path, names: dict[str, object], cli: Cli) -> None:
    # The line numbers of a traceback are those of the page.
    code = "\n" * block.line + replaced(block.code)
    exec(compile(code, str(block.page), "exec"), names)


def _run_console(block: Block, folder: Path, names: dict[str, object], cli: Cli) -> None:
    for command in commands(block.code):
        program, *words = command.words
        assert program == "pruner-zero", f"{block}: mark what is not run: {program}"
        outcome = cli(*_tiny([replaced(word) for word in words], folder))
        assert outcome.code == 0, f"{block}: {outcome.err}"
        shown = tuple(map(replaced, command.shown))
        if block.page.name == "README.md":
            shown = without_numbers(shown)
        assert agrees(shown, outcome.out), f"{block}: it printed\n{outcome.out}"


def _tiny(words: list[str], folder: Path) -> list[str]:
    """The arguments with the sizes of TINY, and the settings of TINY_SEARCH for a search."""
    sizes = examples.TINY.get(words[0], ())
    if words[0] == "evaluate" and "--text" not in words:
        sizes = sizes[2:]  # Without the windows of a text.
    words = [*words, *sizes]
    if words[0] == "search" and "--resume" not in words:
        settings = {}
        if "--config" in words:
            settings = yaml.safe_load((folder / words[words.index("--config") + 1]).read_text())
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**examples.TINY_SEARCH, **settings}))
        words += ["--config", "tiny.yaml"]
    return words


def _write(block: Block, folder: Path, names: dict[str, object], cli: Cli) -> None:
    """Checks that a file parses, and writes it for the following commands if it has a title."""
    code = replaced(block.code)
    parse: Callable[[str], object] = yaml.safe_load if block.language == "yaml" else tomllib.loads
    assert parse(code), block
    if block.title is not None:
        os.makedirs((folder / block.title).parent, exist_ok=True)
        (folder / block.title).write_text(code)


RUNNERS: dict[str, Callable[[Block, Path, dict[str, object], Cli], None]] = {
    "python": _run_python,
    "console": _run_console,
    "yaml": _write,
    "toml": _write,
}
