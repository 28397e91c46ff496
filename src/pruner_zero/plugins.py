"""Registries that other packages add to: operators, metrics, steps, texts, executors, algorithms.

A package declares, in its pyproject.toml,

    [project.entry-points."pruner_zero.operators"]
    softsign = "my_package:SOFTSIGN"

and the name can be used wherever a built-in name can.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, TypeVar, cast

from pruner_zero.errors import PrunerZeroError, one_line

T = TypeVar("T")

# Other texts, such as expressions, files with a suffix and hub ids, are not looked up.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_:-]*")


class Registry(Mapping[str, T]):
    """A read-only mapping from names to values of one kind: built-in ones and plug-ins.

    Iteration and length cover the built-in names only, so that an installed package changes
    nothing for users who do not name it. Any other name is looked up in the entry points of the
    group `pruner_zero.<group>`, and imported when its value is asked for.

    group: a plural, such as "operators". builtin: the built-in values. deferred: functions that
    import a built-in value when it is asked for.
    of: the type of the values; object where they need only be callable.
    A look-up raises PrunerZeroError, in one line that names the package, where a plug-in cannot
    be imported, is of the wrong type, or uses a name that is taken.
    """

    def __init__(
        self,
        group: str,
        of: type,
        builtin: Mapping[str, T] = MappingProxyType({}),
        deferred: Mapping[str, Callable[[], T]] = MappingProxyType({}),
    ) -> None:
        self.group = group
        self.of = of
        self._builtin, self._deferred = builtin, deferred
        self._names = dict.fromkeys([*builtin, *deferred])
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name in self._builtin:
            return self._builtin[name]
        if name not in self._loaded:
            load = self._deferred.get(name)
            self._loaded[name] = load() if load else self._load(name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names or name in self._plugged(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def plugged(self) -> Mapping[str, str]:
        """The names that plug-ins add, and the package that each comes from."""
        groups = _entry_points(f"pruner_zero.{self.group}")
        for name, entries in groups.items():
            packages = sorted(map(_package, entries))
            if name in self._names:
                raise PrunerZeroError(
                    f"the package {packages[0]} adds '{name}' to the {self.group}, a name that is "
                    "built in: rename it there or uninstall the package"
                )
            if len(packages) > 1:
                raise PrunerZeroError(
                    f"the packages {' and '.join(packages)} both add '{name}' to the "
                    f"{self.group}: uninstall one of them"
                )
        return {name: _package(entries[0]) for name, entries in groups.items()}

    def _plugged(self, name: object) -> Mapping[str, str]:
        return self.plugged if isinstance(name, str) and _NAME.fullmatch(name) else {}

    def _load(self, name: str) -> T:
        if name not in self._plugged(name):
            raise KeyError(name)
        entry = _entry_points(f"pruner_zero.{self.group}")[name][0]
        whose = f"'{name}' among the {self.group}, from the package {_package(entry)},"
        try:
            value: Any = entry.load()
        except Exception as error:
            # A package can raise anything while it is imported.
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
    """Read the installed packages again, in a process that has installed one."""
    _entry_points.cache_clear()


@cache
def _entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name, from the packages' metadata; imports nothing."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        # An editable package can be on the path twice, and is still one package.
        if entry not in by_name.get(entry.name, []):
            by_name.setdefault(entry.name, []).append(entry)
    return by_name


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
