"""Scripts of the benchmarks say what they do; pages have a question, a command and one table."""

import re
import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS

SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if path.name != "tables.py"]
PAGES = [path for path in sorted(BENCHMARKS.glob("*.md")) if path.name != "decisions.md"]
# Pages whose table a command writes from result files, without measuring anything.
WRITTEN = {"smaller": (), "proof": ("page",), "speed": ("page",), "front": ("page",)}


def run(script: Path, *words: str, patch: pytest.MonkeyPatch) -> None:
    patch.syspath_prepend(BENCHMARKS)
    patch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_shows_the_purpose(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(script, "--help", patch=monkeypatch)
    assert stopped.value.code == 0
    purpose = script.read_text().splitlines()[0].strip('"')
    assert purpose in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_has_a_question_a_command_and_at_most_five_points(page: Path) -> None:
    _, question, command, *_ = page.read_text().split("\n\n")
    assert question.endswith("?")
    assert command.startswith("Command")
    for name in re.findall(r"python benchmarks/(\w+\.py)", command):
        assert (BENCHMARKS / name).exists()
    body = re.sub(r"<!-- table.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^- ", body, re.MULTILINE)) <= 5


@pytest.mark.parametrize("name", WRITTEN)
def test_the_tables_of_a_page_are_those_of_its_result_files(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(
        import_module("tables"),
        "write_table",
        lambda page, table, part="": written.append((page, table)),
    )
    # The pictures are compared by no test.
    monkeypatch.setattr(import_module("headline"), "save", lambda figure, file: None)
    run(BENCHMARKS / f"{name}.py", *WRITTEN[name], patch=monkeypatch)
    assert written
    for page, table in written:
        assert table.rstrip() in (BENCHMARKS / f"{page}.md").read_text()
