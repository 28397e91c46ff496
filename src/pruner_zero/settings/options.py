"""Command-line options, made from the fields of settings."""

from dataclasses import dataclass
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pruner_zero.settings.base import Cli, Settings


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
