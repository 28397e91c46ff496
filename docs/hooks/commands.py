"""Reference pages made from the program: commands, settings, metrics, operators, terminals."""

import importlib
import re
from typing import Any

import typer

from pruner_zero.cli.app import app
from pruner_zero.metric.expression import TERMINALS
from pruner_zero.metric.metric import NAMED
from pruner_zero.metric.operators import OPERATORS, PUBLISHED
from pruner_zero.settings.base import Settings

# Where the settings of the verbs that take --config are.
SETTINGS = {
    "prune": ("pruner_zero.settings.prune_settings", "PruneSettings"),
    "evaluate": ("pruner_zero.settings.evaluate_settings", "EvaluateSettings"),
    "compare": ("pruner_zero.settings.compare_settings", "CompareSettings"),
    "search": ("pruner_zero.settings.search_settings", "SearchSettings"),
    "recover": ("pruner_zero.settings.recover_settings", "RecoverSettings"),
}


def verbs() -> list[str]:
    """Every command, such as `prune` or `metric show`, in the order of --help."""
    return [name for name, _ in _walk(typer.main.get_command(app), ())]


def all_commands() -> str:
    """Every command below a heading of its own."""
    return "\n\n".join(f"## {name}\n\n{command(name)}" for name in verbs())


def command(name: str) -> str:
    """The help of one command as Markdown: usage, a row an option or setting of --config."""
    node = dict(_walk(typer.main.get_command(app), ()))[name]
    context: Any = None
    for part in ("pruner-zero", *name.split()):
        context = typer.Context(node, info_name=part, parent=context)
    lines = [f"`{_usage(node, name, context)}`: {_text(node.help or '')}", ""]
    lines += ["| option | meaning |", "|---|---|"]
    for parameter in node.params:
        # As --help-all does.
        parameter.hidden = False
        record = parameter.get_help_record(context)
        if record is None:
            record = (parameter.make_metavar(context), getattr(parameter, "help", None) or "")
        # Brackets are escaped, since Typer reads help as Rich's markup.
        names, meaning = (_cell(text.replace("\\[", "[")) for text in record)
        lines.append(f"| `{names}` | {_text(meaning)} |")
    if name in SETTINGS:
        lines += _settings(name, {parameter.name for parameter in node.params})
    return "\n".join(lines)


def metrics() -> str:
    """The known metrics, as a Markdown table."""
    lines = ["| name | expression | from |", "|---|---|---|"]
    for name, metric in NAMED.items():
        lines.append(f"| `{name}` | `{metric.text}` | {metric.citation} |")
    return "\n".join(lines)


def operators() -> str:
    """The operators with some of their facts, as a Markdown table."""
    lines = [
        "| operator | result | grows with its first operand | set |",
        "|---|---|---|---|",
    ]
    for name, operator in OPERATORS.items():
        group = "published" if name in PUBLISHED else "extended"
        grows = {"nonnegative": "where that is not negative", "never": "not claimed"}.get(
            operator.increasing, operator.increasing
        )
        lines.append(f"| `{name}` | `{_cell(operator.described)}` | {grows} | {group} |")
    return "\n".join(lines)


def terminals() -> str:
    """The terminals, as a Markdown table."""
    lines = ["| terminal | varies over | meaning |", "|---|---|---|"]
    for name, terminal in TERMINALS.items():
        axes = zip(terminal.shape.value, ("outputs", "inputs"), strict=True)
        form = " and ".join(axis for varies, axis in axes if varies)
        lines.append(f"| `{name}` | {form} | {_cell(terminal.meaning)} |")
    return "\n".join(lines)


def _walk(node: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    if not hasattr(node, "commands"):
        return [(" ".join(path), node)]
    return [below for name, child in node.commands.items() for below in _walk(child, (*path, name))]


def _usage(node: Any, name: str, context: Any) -> str:
    return f"pruner-zero {name} {' '.join(node.collect_usage_pieces(context))}"


def _settings(verb: str, options: set[str]) -> list[str]:
    """The settings that only a --config file can give."""
    module, name = SETTINGS[verb]
    kind: type[Settings] = getattr(importlib.import_module(module), name)
    rest = {field: info for field, info in kind.model_fields.items() if field not in options}
    return [
        f"| `{field}`, in a `--config` file alone | {_text(info.description or '')} |"
        for field, info in rest.items()
    ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> str:
    """Help is plain text: what Markdown would take for its own is escaped."""
    return re.sub(r"(?<!\\)([*_<\[\]])", r"\\\1", " ".join(text.split()))
