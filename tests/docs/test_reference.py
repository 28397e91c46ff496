"""The reference names every command, option and public name, and the pages can be built."""

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path
from pkgutil import resolve_name

import pytest

import pruner_zero
from tests.cli.conftest import Cli, cli
from tests.docs.hooks import DOCS, ROOT, load_hook

__all__ = ["cli"]

commands = load_hook("commands")
VERBS = commands.verbs()
REFERENCE = {page: page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))}
DESCRIBED = re.findall(r"^::: (\S+)$", "\n".join(REFERENCE.values()), re.MULTILINE)


def test_every_command_has_its_place() -> None:
    headings = re.findall(r"^## (.+)$", commands.all_commands(), re.MULTILINE)
    assert headings == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_described_as_its_help_describes_it(
    verb: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = cli(*verb.split(), "--help-all" if verb in commands.SETTINGS else "--help")
    assert outcome.code == 0
    page = commands.command(verb)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", outcome.out)) - {"--help"}
    listed = set(re.findall(r"^\| `[^`]*?(--[a-z][a-z-]*)", page, re.MULTILINE))
    assert listed <= options
    declared = {name for name in options if re.search(rf"^│[* ]*{name}\b", outcome.out, re.M)}
    assert listed == declared


@pytest.mark.parametrize("verb", commands.SETTINGS)
def test_settings_that_are_no_options_are_listed(verb: str) -> None:
    module, name = commands.SETTINGS[verb]
    fields = getattr(importlib.import_module(module), name).model_fields
    page = commands.command(verb)
    for field in fields:
        spellings = (f"--{field.replace('_', '-')} ", f"--{field.replace('_', '-')}`", f"`{field}`")
        shown = any(spelling in page for spelling in spellings)
        assert shown or field in ("model", "others"), field


@pytest.mark.parametrize("name", ["metrics", "operators", "terminals"])
def test_every_row_of_a_generated_table_has_as_many_cells_as_its_head(name: str) -> None:
    lines = getattr(commands, name)().splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(widths) == 1
    assert len(lines) > 4


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_described_name_is_defined_in_the_module_that_is_named(name: str) -> None:
    member = resolve_name(name)
    if inspect.isclass(member) or inspect.isfunction(member):
        assert f"{member.__module__}.{member.__qualname__}" == name


def test_every_public_function_is_described() -> None:
    members = (getattr(pruner_zero, name) for name in pruner_zero.__all__ if name[0] != "_")
    assert {f"{member.__module__}.{member.__qualname__}" for member in members} <= set(DESCRIBED)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_everything_described(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    assert {line.rsplit(" ", 4)[0] for line in inventory.splitlines()} >= set(DESCRIBED)
