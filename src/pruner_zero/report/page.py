"""One self-contained page: text, inline SVG and MathML, without scripts or network."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import Study
from pruner_zero.files import check_file, write_atomic
from pruner_zero.markup import clean
from pruner_zero.report import commands
from pruner_zero.report.parts import part
from pruner_zero.report.read import ComparisonRun, PruneRun, Result, read_result
from pruner_zero.report.summary import summary
from pruner_zero.version import __version__


def report(inputs: str | Path | Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about `inputs` and return its path.

    inputs: folders that search or prune wrote, files that compare wrote. output: the page;
    None: report.html in the first folder among the inputs, else beside the first file. Raises
    PrunerZeroError for an input that is no result and for a page that cannot be written.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = list(dict.fromkeys(map(Path, given)))
    if not paths:
        raise PrunerZeroError("give at least one folder or file of results")
    results = [read_result(path) for path in paths]
    if output is None:
        folder = next(filter(Path.is_dir, paths), paths[0].parent)
        output = folder / "report.html"
    file = check_file(output, page=True)
    # The name of a file can hold half a surrogate pair, which has no UTF-8.
    write_atomic(file, page(results).encode(errors="replace"))
    return file


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
    # A search that found no metric has written no best.json.
    searches = [
        result for result in results if isinstance(result, Study) and result.hall_of_fame.best
    ]
    models = dict.fromkeys(str(result.settings.get("model", "")) for result in results)
    context = {
        "title": "Pruning of " + ", ".join(Path(name).name or "a model" for name in models),
        "summaries": [summary(result) for result in results],
        "parts": [part(result) for result in results],
        "compared": any(isinstance(result, ComparisonRun) for result in results),
        "comparisons": list(map(commands.compare_with, searches)),
        "origins": [(str(result.path), _origin(result)) for result in results],
        "commands": _commands(results),
        "repeatable": all(commands.repeatable(result) for result in results),
        "version": __version__,
    }
    return environment.get_template("report.html").render(context)


def _commands(results: Sequence[Result]) -> list[tuple[str, str]]:
    shown = [(f"Reproduce {result.path}", commands.repeat(result)) for result in results]
    for result in results:
        if isinstance(result, Study):
            path = result.path
            shown.append((f"Explain {path}", shlex.join(["pruner-zero", "analyze", str(path)])))
            if result.hall_of_fame.best:
                shown.append((f"Prune with the best metric of {path}", commands.prune_with(result)))
    paths = [str(result.path) for result in results]
    return [*shown, ("Reproduce this page", shlex.join(["pruner-zero", "report", *paths]))]


def _origin(result: Result) -> list[tuple[str, str]]:
    """What determines a result, as names and values: settings, texts, versions."""
    windows = {
        f"{use} {name}": value
        for use, described in result.windows.items()
        for name, value in described.items()
    }
    timing = result.timing if isinstance(result, PruneRun) else {}
    return [
        (name.replace("_", " "), _written(value))
        for facts in (result.settings, windows, result.provenance, timing)
        for name, value in facts.items()
        if value not in (None, [], {}, ())
    ]


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_written(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return str(value)


def _visible(value: object) -> object:
    return value if isinstance(value, Markup) else escape(clean(str(value)))
