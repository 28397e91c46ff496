"""Every script of the benchmarks says what it does, and every page begins with its command."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS

# What others import alone, and pages that no command makes.
LIBRARIES, WRITTEN = {"recorded.py", "tables.py"}, {"decisions.md", "units.md", "versions.md"}
SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if path.name not in LIBRARIES]
PAGES = [path for path in sorted(BENCHMARKS.glob("*.md")) if path.name not in WRITTEN]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_shows_the_purpose(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    purpose = script.read_text().splitlines()[0].strip('"')
    assert purpose in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_begins_with_its_command(page: Path) -> None:
    beginning = page.read_text().split("\n\n")[1]
    commands = re.findall(r"`[^`]*python benchmarks/(\w+\.py)[^`]*`", beginning)
    assert commands
    assert all((BENCHMARKS / name).exists() for name in commands)
