"""What the source imports is declared, and private names of transformers are in one module."""

import ast
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/pruner_zero"
PRIVATE = SOURCE / "models/transformers_private.py"
# Submodules of transformers that its documentation names.
PUBLIC = {"transformers", "transformers.pytorch_utils"}
# Part of CPython, though not in `sys.stdlib_module_names`.
CPYTHON = {"pydoc_data"}


def declared() -> tuple[set[str], set[str]]:
    """The distributions that pyproject.toml requires, and those of its extras for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = chain.from_iterable(extras[name] for name in extras if name not in {"dev", "docs"})
    return distribution_names(project["dependencies"]), distribution_names(users)


def distribution_names(lines: Iterable[str]) -> set[str]:
    """The distributions that requirement `lines` name."""
    return {str(canonicalize_name(Requirement(line).name)) for line in lines}


def imports(path: Path) -> set[str]:
    """The full names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            names.add(node.module)
    return names


def third_party() -> set[str]:
    names = {name.split(".")[0] for path in SOURCE.rglob("*.py") for name in imports(path)}
    return names - set(sys.stdlib_module_names) - CPYTHON - {"pruner_zero"}


@cache
def distributions_of_modules() -> Mapping[str, list[str]]:
    return packages_distributions()


def distributions(module: str) -> set[str]:
    return {str(canonicalize_name(name)) for name in distributions_of_modules()[module]}


def private_names(path: Path) -> set[str]:
    """Attributes with a leading underscore, by themselves or as texts for `getattr`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_every_import_is_declared() -> None:
    required, optional = declared()
    missing = {name for name in third_party() if not distributions(name) & (required | optional)}
    assert not missing


def test_every_dependency_is_imported() -> None:
    required, _ = declared()
    imported = set(chain.from_iterable(distributions(name) for name in third_party()))
    assert required - imported == set()


def test_all_are_ranges_and_that_of_transformers_alone_has_an_end() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        operators = {">=", "<"} if requirement.name == "transformers" else {">="}
        assert {clause.operator for clause in requirement.specifier} == operators, requirement


def test_private_names_of_transformers_stay_in_their_module() -> None:
    private = private_names(PRIVATE)
    assert {"_weight_conversions", "_experts_implementation"} <= private
    for path in SOURCE.rglob("*.py"):
        if path != PRIVATE:
            modules = {name for name in imports(path) if name.split(".")[0] == "transformers"}
            assert modules <= PUBLIC, path
            assert not private_names(path) & private, path
