"""One self-contained page: everything in it is text, inline SVG and MathML; no scripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pruner_zero.markup import clean
from pruner_zero.report import commands
from pruner_zero.report.parts import Part, comparison_part, prune_part, search_part
from pruner_zero.report.read import ComparisonRun, PruneRun, Result, SearchRun
from pruner_zero.report.summary import summary
from pruner_zero.version import __version__


def page(results: Sequence[Result]) -> str:
    """The HTML of a report on `results`, in their order."""
    environment = Environment(
        loader=PackageLoader("pruner_zero.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    models = dict.fromkeys(str(one.settings.get("model", "")) for one in results)
    context = {
        "title": "Pruning of " + ", ".join(Path(name).name or "a model" for name in models),
        "summaries": [summary(result, results) for result in results],
        "parts": [_part(result) for result in results],
        "compared": any(isinstance(one, ComparisonRun) for one in results),
        "comparisons": [
            commands.compare_with(one) for one in results if isinstance(one, SearchRun)
        ],
        "origins": [(str(one.path), _origin(one)) for one in results],
        "commands": _commands(results),
        "repeatable": all(commands.repeatable(one) for one in results),
        "version": __version__,
    }
    return environment.get_template("report.html").render(context)


def _part(result: Result) -> Part:
    match result:
        case SearchRun():
            return search_part(result)
        case PruneRun():
            return prune_part(result)
    return comparison_part(result)


def _commands(results: Sequence[Result]) -> list[tuple[str, str]]:
    found = [(f"Make {result.path} again", commands.repeat(result)) for result in results]
    for result in results:
        if isinstance(result, SearchRun):
            found.append((f"Explain {result.path}", commands.analyze(result)))
            found.append((f"Prune with the best of {result.path}", commands.prune_with(result)))
    found.append(("Make this page again", commands.report_on([one.path for one in results])))
    return found


def _origin(result: Result) -> list[tuple[str, str]]:
    """What decided a result, as names and values: settings, texts, versions."""
    told = [(name.replace("_", " "), value) for name, value in result.settings.items()]
    for use, windows in result.windows.items():
        told += [(f"{use} {name.replace('_', ' ')}", value) for name, value in windows.items()]
    told += [(name.replace("_", " "), value) for name, value in result.provenance.items()]
    if isinstance(result, PruneRun):
        told += [(name.replace("_", " "), value) for name, value in result.timing.items()]
    return [(name, _written(value)) for name, value in told if value not in (None, [], {}, ())]


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_written(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return str(value)


def _visible(value: object) -> object:
    return value if isinstance(value, Markup) else escape(clean(str(value)))
