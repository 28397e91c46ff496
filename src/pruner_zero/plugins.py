"""What other packages add: operators, metrics, texts, executors, found by their entry points.

A package declares, in its pyproject.toml,

    [project.entry-points."pruner_zero.operators"]
    softsign = "my_package:SOFTSIGN"

and the name can be used wherever a built-in one can. `pruner_zero.testing` holds the tests that
each such thing must pass.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, TypeVar, cast

from pruner_zero.errors import PrunerZeroError, one_line

T = TypeVar("T")

# No expression, no file with a suffix and no hub id is one.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_:-]*")


class Registry(Mapping[str, T]):
    """Names of one kind, read-only: the built-in ones, and those of plug-ins that are asked for.

    Iteration and length are those of the built-in names, so that an installed package changes
    nothing for who does not name it. A name that is not among them is looked up in the entry
    points of the group `pruner_zero.<kind>`, and imported when its value is asked for.
    kind: a plural, "operators". of: the type of the values; object where they need only be
    callable. Looking up raises PrunerZeroError, in one line that names the package,
    where a plug-in cannot be imported, is none of its kind, or takes a name that is taken.
    """

    def __init__(self, kind: str, of: type, builtin: Mapping[str, T]) -> None:
        self.kind = kind
        self.of = of
        self._builtin = MappingProxyType(dict(builtin))
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name in self._builtin:
            return self._builtin[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._plugged(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._builtin)

    def __len__(self) -> int:
        return len(self._builtin)

    @property
    def plugged(self) -> Mapping[str, str]:
        """The names that plug-ins add, and the package that each comes from."""
        found = _entry_points(f"pruner_zero.{self.kind}")
        for name, entries in found.items():
            packages = sorted(map(_package, entries))
            if name in self._builtin:
                raise PrunerZeroError(
                    f"the package {packages[0]} adds '{name}' to the {self.kind}, a name that is "
                    "built in: rename it there or uninstall the package"
                )
            if len(packages) > 1:
                raise PrunerZeroError(
                    f"the packages {' and '.join(packages)} both add '{name}' to the "
                    f"{self.kind}: uninstall one of them"
                )
        return {name: _package(entries[0]) for name, entries in found.items()}

    def _plugged(self, name: object) -> Mapping[str, str]:
        return self.plugged if isinstance(name, str) and _NAME.fullmatch(name) else {}

    def _load(self, name: str) -> T:
        if name not in self._plugged(name):
            raise KeyError(name)
        entry = _entry_points(f"pruner_zero.{self.kind}")[name][0]
        whose = f"'{name}' among the {self.kind}, from the package {_package(entry)},"
        try:
            value: Any = entry.load()
        except Exception as error:
            # Whatever a foreign package raises as it is imported.
            raise PrunerZeroError(
                f"{whose} cannot be imported ({one_line(error)}): mend or uninstall the package"
            ) from error
        if not (callable(value) if self.of is object else isinstance(value, self.of)):
            wanted = "callable" if self.of is object else f"of type {self.of.__name__}"
            raise PrunerZeroError(f"{whose} is not {wanted}: mend or uninstall the package")
        if getattr(value, "name", name) != name:
            raise PrunerZeroError(
                f"{whose} calls itself '{value.name}': the entry point must have the same name"
            )
        return cast(T, value)


def forget() -> None:
    """Look at the installed packages anew, for a process that installs one."""
    _entry_points.cache_clear()


@cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name. Reads what packages declare and imports none."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        # A package that is found twice on the path, as an editable one may be, is one package.
        if entry not in found.get(entry.name, []):
            found.setdefault(entry.name, []).append(entry)
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
