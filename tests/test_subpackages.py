"""The imports that each subpackage may have: the table of ARCHITECTURE.md against the code."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pruner_zero

ROOT = Path(__file__).parents[1]
SOURCE = Path(pruner_zero.__file__).parent
PACKAGE = "pruner_zero"
# The face of the package and the way into it name the verbs.
FACE = {"__init__", "__main__"}
# The second one is the end of an f-string.
_MODULE = re.compile(rf"({PACKAGE}(?:\.[a-z_]+)+)(?::\w+)?|((?:\.[a-z_]+)+):[A-Za-z_]\w*")


def table(page: str) -> dict[str, set[str]]:
    """The subpackages that each subpackage of the table may import, from top to bottom."""
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ?([^|]*?) ?\|$", page, re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for subpackage, imports in rows:
        named = set(re.split(r",\s*", imports)) if imports else set()
        allowed[subpackage] = (
            set(allowed) if named == {"all above"} else named & {name for name, _ in rows}
        )
    return allowed


def named_by_strings(code: str) -> list[str]:
    """The modules of the package that strings of a module name, as "module:attribute" or alone."""
    strings = [
        str(node.value) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)
    ]
    return [found[1] or found[2] for text in strings if (found := _MODULE.fullmatch(text))]


def imported(code: str) -> Iterator[str]:
    """The subpackages and root modules of the package that a module imports, wherever in it."""
    yield from (name.split(".")[1] for name in named_by_strings(code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides the subpackage"
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}."))


def used(folder: Path) -> dict[str, set[str]]:
    """The subpackages that each subpackage imports; all root modules count as the subpackage ""."""
    subpackages = {path.parent.name for path in folder.glob("*/__init__.py")}
    imports: dict[str, set[str]] = {subpackage: set() for subpackage in ("", *subpackages)}
    for path in folder.rglob("*.py"):
        subpackage = path.relative_to(folder).parts[0] if path.parent != folder else ""
        if subpackage or path.stem not in FACE:
            imports[subpackage] |= set(imported(path.read_text())) & subpackages - {subpackage}
    return imports


SUBPACKAGES = table((ROOT / "ARCHITECTURE.md").read_text())
USED = used(SOURCE)


def test_the_table_has_every_subpackage() -> None:
    assert set(SUBPACKAGES) == set(USED) - {""}


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_a_subpackage_imports_only_what_its_row_names(subpackage: str) -> None:
    assert USED[subpackage] <= SUBPACKAGES[subpackage], (
        f"{subpackage} imports {sorted(USED[subpackage] - SUBPACKAGES[subpackage])}"
    )


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_a_row_names_only_subpackages_above_it_that_the_subpackage_imports(subpackage: str) -> None:
    above = list(SUBPACKAGES)[: list(SUBPACKAGES).index(subpackage)]
    assert SUBPACKAGES[subpackage] <= set(above)
    assert subpackage == "cli" or SUBPACKAGES[subpackage] <= USED[subpackage]


def test_the_language_does_not_depend_on_its_canonical_forms() -> None:
    inner = SOURCE / "metric" / "canonical"
    outside = (SOURCE / "metric").glob("*.py")
    assert inner.is_dir()
    assert not [path.name for path in outside if "metric.canonical" in path.read_text()]


def test_the_root_imports_no_subpackage() -> None:
    assert USED[""] == set()


def test_no_module_is_named_by_a_string() -> None:
    """Neither types nor this table see what a string imports."""
    named = {
        str(path.relative_to(SOURCE)): modules
        for path in SOURCE.rglob("*.py")
        if (modules := set(named_by_strings(path.read_text())) - {_package_of(path)})
    }
    assert not named


def _package_of(path: Path) -> str:
    """The package that a file lies in, which may be named to find files beside it."""
    return ".".join([PACKAGE, *path.relative_to(SOURCE).parts[:-1]])


def circles(folder: Path) -> set[frozenset[str]]:
    """The largest sets of modules of a package of which each imports the others, wherever in it."""
    modules = {_module(path.relative_to(folder)): path for path in folder.rglob("*.py")}
    reached = {
        name: {found for found in modules_imported(path.read_text()) if found in modules} - {name}
        for name, path in modules.items()
    }
    for middle in modules:
        for name in modules:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in modules
        if name in reached[name]
    }


def modules_imported(code: str) -> Iterator[str]:
    """All names in the package that the code imports: modules, and what is in them."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def test_no_modules_import_each_other() -> None:
    """The face of the package, which names the verbs for type checkers, is imported by none."""
    assert circles(SOURCE) == set()


@pytest.mark.parametrize(
    "line", ["import {}", "def f():\n    import {}", "if TYPE_CHECKING:\n    import {}"]
)
def test_a_circle_is_seen_wherever_its_imports_are(line: str, tmp_path: Path) -> None:
    names = [f"{PACKAGE}.{name}" for name in ("first", "second", "third")]
    for name, imported in zip(names, [*names[1:], names[0]], strict=True):
        (tmp_path / f"{name.split('.')[1]}.py").write_text(line.format(imported))
    (tmp_path / "outside.py").write_text(f"from {PACKAGE} import first")
    assert circles(tmp_path) == {frozenset(names)}


@pytest.mark.parametrize(
    "line",
    [
        "from pruner_zero.upper import x",
        "from pruner_zero.upper.deep import x",
        "from pruner_zero import upper",
        "import pruner_zero.upper.deep",
        "def f():\n    from pruner_zero.upper import x",
        'MODULES = {"x": "pruner_zero.upper.deep:x"}',
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pruner_zero.upper",
    ],
)
def test_an_import_upward_is_seen_wherever_it_is(line: str, tmp_path: Path) -> None:
    for subpackage in ("lower", "upper"):
        (tmp_path / subpackage).mkdir()
        (tmp_path / subpackage / "__init__.py").touch()
    (tmp_path / "lower" / "module.py").write_text(line)
    page = "| `lower/` | x | torch |\n| `upper/` | y | lower |\n| `cli/` | z | all above |"
    allowed: Mapping[str, set[str]] = table(page)
    assert allowed == {"lower": set(), "upper": {"lower"}, "cli": {"lower", "upper"}}
    assert used(tmp_path)["lower"] - allowed["lower"] == {"upper"}
