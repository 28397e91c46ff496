"""Options: Typer's parameters made from the fields of settings, and those that are no settings."""

import os
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

import typer
from rich.markup import escape

from pruner_zero.cli.terminal import progress
from pruner_zero.progress import reported_to
from pruner_zero.settings.base import FILES, ModelSettings, Option, Settings, options_of
from pruner_zero.settings.read_settings import read_settings

_OUTPUT_MODEL = typer.Option(
    "--output",
    "-o",
    help="Folder for the result, or a .gguf file where MODEL is one.",
    show_default=False,
)
OutputModel = Annotated[Path, _OUTPUT_MODEL]
OutputUnlessDry = Annotated[Path | None, _OUTPUT_MODEL]
OutputFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file for the result.", show_default=False),
]


def _switch(flag: str, text: str) -> Any:
    # Nothing stands after a switch, where Typer would show <bool>.
    return typer.Option(flag, help=text, metavar="", rich_help_panel=FILES)


Overwrite = Annotated[
    bool,
    _switch("--overwrite", "Replace the model at the output, or discard an unfinished run of it."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be done, to which matrices, and an estimate of minutes and memory.",
        metavar="",
    ),
]
OverwriteTable = Annotated[
    bool, _switch("--overwrite", "Replace the table at the output, finished or not.")
]
AsJson = Annotated[bool, _switch("--json", "Print the result as one JSON value.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for statistics of the dense model, and for text that it writes. "
        "\\[default: $PRUNER_ZERO_CACHE, else ~/.cache/pruner-zero]",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of settings, the options with `_` for `-`; options win over it.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]


def _help_all(context: typer.Context, asked: bool) -> None:
    if asked:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        callback=_help_all,
        is_eager=True,
        help="Show all options and exit.",
        metavar="",
    ),
]
_HELP_ALL = Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll)


def with_settings(kind: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command so that every setting of `kind` becomes a parameter for Typer.

    The command receives the settings given on the command line, by name, as `settings`. What it
    calls reports its progress on stderr. `--help` shows the options of the
    first panel and those of files, `--help-all` all.
    """
    options = options_of(kind)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for parameter in signature(command).parameters.values()
            if parameter.name != "settings"
        ]

        @wraps(command)
        def call(**given: Any) -> None:
            del given["help_all"]
            settings = {name: given.pop(name) for name in options}
            given["settings"] = {
                name: read(value) if (read := options[name].read) else value
                for name, value in settings.items()
                if value not in (None, [])
            }
            if not (given.get("config") or given.get("resume")):
                # Before the command imports torch, which takes seconds.
                read_settings(kind, given["settings"])
            with reported_to(progress()):
                command(**given)

        made = [_parameter(option) for option in sorted(options.values(), key=_place)]
        call.__signature__ = signature(command).replace(  # type: ignore[attr-defined]
            parameters=[*made, *parameters, _HELP_ALL]
        )
        return call

    return decorate


def _place(option: Option) -> tuple[int, bool]:
    """Sort key: the panel that most runs need first, those of the machine and of files last."""
    panel = {Settings.panel: 0, ModelSettings.panel: 2, FILES: 3}.get(option.panel, 1)
    return panel, not option.first


def _parameter(option: Option) -> Parameter:
    shown: dict[str, Any] = {
        # Escaped, because Rich takes brackets such as [@SCOPE] for markup.
        "help": escape(option.full_help),
        # Nothing after a switch, where Typer would show <bool>.
        "metavar": "" if option.type is bool else option.metavar,
        "show_default": False,
    }
    if option.argument:
        declared = typer.Argument(**shown)
    else:
        panel = None if option.panel == Settings.panel else option.panel
        if option.choices:
            shown["autocompletion"] = lambda: list(option.choices)
        # A shell completes all of them.
        completes = "_PRUNER_ZERO_COMPLETE" in os.environ
        hidden = option.panel not in (Settings.panel, FILES) and not completes
        declared = typer.Option(option.flag, rich_help_panel=panel, hidden=hidden, **shown)
    kind = GenericAlias(list, (option.type,)) if option.repeatable else option.type
    return Parameter(
        option.name,
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, declared],
    )
