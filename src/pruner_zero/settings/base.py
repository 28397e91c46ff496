"""The base of all settings, the types and names that their fields share, and the model's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from pruner_zero.choices import Dtype, GgufType
from pruner_zero.errors import PrunerZeroError


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
FILES = "Files and output"
STRINGS = "(strings)"


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


TEXT_HELP = (
    "a corpus (wikitext2, c4, ptb, builtin:pydoc) or a .txt, .raw, .md, .jsonl or .parquet file."
)


def _check_device(asked: str) -> str:
    # Imported here, because it asks torch what this machine has.
    from pruner_zero.devices import find_devices

    find_devices(asked)
    return asked


# A device that this machine has.
Device = Annotated[str, AfterValidator(_check_device), Cli(metavar="DEVICE")]


class ModelSettings(Settings):
    """Which model, and how it is loaded."""

    panel: ClassVar[str] = "Machine"

    model: Annotated[str, Cli(panel="Options", metavar="MODEL", argument=True)] = Field(
        description="A hub id, with a branch, tag or commit as NAME@REVISION, a folder, a .gguf "
        "file or builtin:smollm2-135m. May be given in --config instead."
    )
    dtype: Dtype = Field("auto", description="Type of the weights; auto keeps the checkpoint's.")
    device: Device = Field(
        "auto",
        description="auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, a list such as "
        "cuda:0,cuda:1 over which the blocks are spread, or mps, which is untried.",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of `load_model`."""
        return {name: getattr(self, name) for name in ("dtype", "device")}


class OutputSettings(ModelSettings):
    """A model that is changed and written as a folder or as a .gguf file."""

    gguf_type: Annotated[GgufType | None, Cli(panel=FILES, default="F16")] = Field(
        None, description="Type of the matrices in a .gguf output."
    )


@dataclass(frozen=True, kw_only=True)
class Option(Cli):
    """The command-line option of the field `name`.

    type: of a value; bool for a switch. choices: the values that the field accepts, empty where
    it accepts any of its type. default: the default in words, None where there is none.
    """

    name: str
    type: type
    help: str
    panel: str
    choices: tuple[str, ...]
    repeatable: bool

    @property
    def flag(self) -> str:
        """The option as it is typed, such as --search-text."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def full_help(self) -> str:
        """The help with the choices, unless it names them, and the default."""
        parts = [self.help]
        if not all(choice in self.help for choice in self.choices):
            parts.append(f"One of {', '.join(self.choices)}.")
        parts += ["Repeatable."] if self.repeatable else []
        parts += [f"[default: {self.default}]"] if self.default else []
        return " ".join(parts)

    def words(self, value: Any) -> list[str]:
        """The words of a command line that set this option to `value`, in its JSON form."""
        if self.type is bool:
            return [self.flag] if value else []
        if isinstance(value, dict):
            value = [f"{name}={amount}".removesuffix(".0") for name, amount in value.items()]
        values = value if isinstance(value, list | tuple) else [value]
        return [word for item in values for word in (self.flag, str(item))]


def options_of(kind: type[Settings]) -> dict[str, Option]:
    """The options of a command by field; a field of nested settings has no option."""
    options = {}
    for name, field in kind.model_fields.items():
        form = _form(field.annotation)
        if form is None:
            continue
        value_type, choices, repeatable = form
        shown = next((part for part in reversed(field.metadata) if isinstance(part, Cli)), Cli())
        derived = {
            "panel": shown.panel or _panel(kind, name),
            "metavar": shown.metavar or (name.upper() if choices else None),
            "default": shown.default or _default(field),
        }
        options[name] = Option(
            **{**vars(shown), **derived},
            name=name,
            type=value_type,
            help=field.description or "",
            choices=choices,
            repeatable=repeatable,
        )
    return options


def _form(annotation: Any) -> tuple[type, tuple[str, ...], bool] | None:
    """The type of a value, its choices, and whether the option is repeatable; None: no option."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _form(arguments[0])
    if origin in (Union, UnionType):
        forms = [_form(part) for part in arguments if part is not NoneType]
        if None in forms or not forms:
            return None
        choices = tuple(choice for form in forms if form for choice in form[1])
        return forms[0] and (forms[0][0], choices, forms[0][2])
    if origin is Literal:
        return str, arguments, False
    amounts = origin is dict and _form(arguments[1]) == (float, (), False)
    if origin is tuple or amounts:
        return str, (), True
    return (annotation, (), False) if annotation in (bool, int, float, str) else None


def _panel(kind: type[Settings], name: str) -> str:
    """The panel of the class that declares the field."""
    declaring = next(base for base in kind.__mro__ if name in get_annotations(base))
    panel: str = vars(declaring).get("panel", Settings.panel)
    return panel


def _default(field: FieldInfo) -> str | None:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is None or isinstance(value, bool | tuple | dict):
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)
