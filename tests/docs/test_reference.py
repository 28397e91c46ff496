"""The reference names every command, option and public name, and the pages can be built."""

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli
from tests.docs.hooks import DOCS, ROOT, load_hook

__all__ = ["cli"]

commands = load_hook("commands")
VERBS = commands.verbs()
REFERENCE = {page: page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))}
SUBPACKAGES = (
    *("metric", "sparsity", "text", "models", "calibration", "pruning", "evaluation"),
    *("comparison", "evolution", "recovery", "report"),
)


def test_every_command_has_its_place() -> None:
    marks = re.findall(r"<!-- command: (.+) -->", REFERENCE[DOCS / "reference" / "commands.md"])
    assert sorted(marks) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_is_described_as_its_help_describes_it(
    verb: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = cli(*verb.split(), "--help")
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
        assert any(spelling in page for spelling in spellings) or field == "model", field


@pytest.mark.parametrize("name", ["metrics", "operators", "terminals"])
def test_every_row_of_a_generated_table_has_as_many_cells_as_its_head(name: str) -> None:
    lines = getattr(commands, name)().splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(widths) == 1
    assert len(lines) > 4


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_every_subpackage_is_in_the_reference(subpackage: str) -> None:
    # Griffe takes a function for the module of the same name, so such functions need entries.
    text = "".join(REFERENCE.values())
    module = importlib.import_module(f"pruner_zero.{subpackage}")
    names = getattr(module, "__all__", None)
    # A subpackage without `__all__` is described by its modules or by names in them.
    end = r"\." if names is None else "$"
    assert re.search(rf"^::: pruner_zero\.{subpackage}{end}", text, re.MULTILINE)
    for name in names or ():
        if inspect.isfunction(member := getattr(module, name)):
            hidden = member.__module__ == f"pruner_zero.{subpackage}.{name}"
            assert not hidden or f"::: {member.__module__}.{name}\n" in text, name


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_names_everything_public(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    names = {line.rsplit(" ", 4)[0] for line in inventory.splitlines()}
    for subpackage in SUBPACKAGES:
        module = importlib.import_module(f"pruner_zero.{subpackage}")
        for name in getattr(module, "__all__", ()):
            member = getattr(module, name)
            # An alias such as `Kind = str` is an attribute of its subpackage.
            declared = getattr(member, "__module__", "").startswith("pruner_zero")
            has_own_path = declared and (inspect.isclass(member) or inspect.isfunction(member))
            path = (
                f"{member.__module__}.{member.__qualname__}"
                if has_own_path
                else f"{module.__name__}.{name}"
            )
            assert path in names
