"""The base of all settings, and how they are read: from YAML and from keywords."""

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pruner_zero.errors import PrunerZeroError, did_you_mean, one_line


class Settings(BaseModel):
    """The base of every command's settings: unknown keys forbidden, values fixed once read.

    A field with its type, default and description is the only place where an option is stated;
    `options_of` makes the command line's options from it. panel: the panel of `--help` in which
    the fields that a class declares are listed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    panel: ClassVar[str] = "Options"

    def by_option(self, exclude: set[str]) -> dict[str, Any]:
        """All values in JSON form by option, such as --seed, without the fields in `exclude`."""
        values = self.model_dump(mode="json", exclude=exclude)
        return {f"--{name.replace('_', '-')}": value for name, value in values.items()}

    def refuse(self, names: Sequence[str], needed: str) -> None:
        """Raise PrunerZeroError where one of `names`, idle without `needed`, is not its default."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                option = name.replace("_", "-")
                raise PrunerZeroError(f"--{option} has no effect without {needed}: leave it out")


@dataclass(frozen=True)
class Cli:
    """How the command line shows a field, as a part of its `Annotated` type.

    panel: the panel of `--help`, where it is not that of the class. metavar: the word for the
    value. default: the text for the default where the field is None. argument: whether it is a
    positional argument. first: whether it is listed before all other options. read: converts the
    words of a repeated option to its value.
    """

    panel: str | None = None
    metavar: str | None = None
    default: str | None = None
    argument: bool = False
    first: bool = False
    read: Callable[[Sequence[str]], Any] | None = None


MAIN = Cli(panel="Options")


def _joined(names: Any) -> Any:
    return ",".join(map(quoted, map(str, names))) if isinstance(names, list | tuple) else names


def quoted(name: str) -> str:
    """`name` as it stands in a list with commas: in double quotes if it has a comma itself."""
    return f'"{name}"' if "," in name else name


# Names with commas between them, as on the command line; YAML and Python may give a list.
CommaSeparated = Annotated[str, BeforeValidator(_joined)]
# A path as text; Python may give a Path.
PathText = Annotated[str, BeforeValidator(lambda p: str(p) if isinstance(p, Path) else p)]


def name_of(value: object) -> str | None:
    """How settings name a model or a text that may be an object; None where none is given.

    A path is its text, a loaded model or a `Corpus` its name, and strings are "(strings)".
    """
    if value is None or isinstance(value, str | Path):
        return None if value is None else str(value)
    name = getattr(value, "name", None) or getattr(value, "name_or_path", None)
    if name is None and isinstance(value, Iterable):
        return STRINGS
    return str(name or type(value).__name__)


def names_of(texts: object) -> str | dict[str, float] | None:
    """How settings name one text, as `name_of` does, or a mapping from texts to shares.

    Raises PrunerZeroError where two texts have the same name.
    """
    if not isinstance(texts, Mapping):
        return name_of(texts)
    named = {str(name_of(text)): share for text, share in texts.items()}
    if len(named) < len(texts):
        raise PrunerZeroError("two texts have the same name: give each one of its own")
    return named


STRINGS = "(strings)"
# Options that are no settings.
_OPTIONS = frozenset({"cache", "config", "json", "output", "overwrite", "quiet", "resume"})

# YAML aliases let a few lines stand for more text than fits in memory.
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 200


S = TypeVar("S", bound=Settings)


def read_settings(
    kind: type[S],
    given: Mapping[str, Any],
    file: str | Path | None = None,
    *,
    within: str | None = None,
) -> S:
    """Settings of `kind` from a YAML `file` and from `given`, which wins over the file.

    Keys whose value is None in `given` count as not given. within: the setting of a command that
    holds these settings. Raises PrunerZeroError naming the option, or the setting that has none,
    and what it accepts.
    """
    values = {**(_read_yaml(Path(file)) if file else {})}
    for part, where in ((values, f" in {file}"), (given, "")):
        for key, value in part.items():
            field = kind.model_fields.get(key)
            # Pydantic would read it as 1 or 0.
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise PrunerZeroError(f"{key} is {str(value).lower()}{where}: it is no switch")
    values.update({key: value for key, value in given.items() if value is not None})
    try:
        return kind(**values)
    except ValidationError as error:
        raise PrunerZeroError(_first_line(error, kind, within)) from error


class _Loader(yaml.SafeLoader):
    """YAML in which 2:4 is text, not a number in base 60, and no key stands twice."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and re.fullmatch(r"\d+:\d+", value):
            return "tag:yaml.org,2002:str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"{twice[0]} stands twice")
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(), _Loader)
    except OSError as error:
        raise PrunerZeroError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PrunerZeroError(f"{file} is not valid YAML: {one_line(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise PrunerZeroError(f"{file} must hold settings as `name: value` lines")
    return values


def _first_line(error: ValidationError, kind: type[Settings], within: str | None) -> str:
    # Imported here, because options are made of settings.
    from pruner_zero.settings.options import options_of

    # An unknown name first: a missing setting may be the one that was misspelt.
    first = min(error.errors(), key=lambda error: error["type"] != "extra_forbidden")
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden" and key in _OPTIONS:
        return f"'{key}' is an option of the command line alone: leave it out of the --config file"
    if first["type"] == "extra_forbidden":
        return f"no setting '{key}': {did_you_mean(key.replace('-', '_'), kind.model_fields)}"
    if first["type"] == "missing":
        return f"the setting '{key}' is missing: give it, or write it in the --config file"
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    message = message[0].lower() + message[1:]
    if not key:
        return message
    value = f"{_shorten.repr(first['input']):.80}"
    if within is None and key in options_of(kind):
        return f"--{key.replace('_', '-')} is {value}: {message}"
    names = [name for name in (within, *first["loc"]) if isinstance(name, str)]
    return f"`{': {'.join(names)}: {value}{'}' * (len(names) - 1)}`: {message}"
