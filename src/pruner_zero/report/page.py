"""One self-contained page: text, figures and MathML, without scripts or network."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pruner_zero.errors import PrunerZeroError, excerpt
from pruner_zero.evolution.study import Study
from pruner_zero.files import check_file, write_atomic
from pruner_zero.metric.expression import Call, Expression
from pruner_zero.metric.latex import to_mathml
from pruner_zero.report import commands, figures
from pruner_zero.report.results import (
    ComparisonRun,
    EvaluationRun,
    PruneRun,
    RecoveryRun,
    Result,
    read_result,
)
from pruner_zero.table import clean
from pruner_zero.version import __version__

# Which weights are compared with each other, by scope.
_COMPARED: Mapping[str, str] = {
    "row": "within rows",
    "block": "within blocks of 128 columns",
    "matrix": "within matrices",
    "global": "across the whole model",
    "unit": "as whole units",
}
_KINDS: Mapping[type, str] = {
    Study: "search",
    PruneRun: "prune",
    RecoveryRun: "recovery",
    ComparisonRun: "comparison",
    EvaluationRun: "evaluation",
}


def report(inputs: str | Path | Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about `inputs` and return its path.

    inputs: folders that search, prune or recover wrote, files that compare or evaluate wrote.
    output: the page; None: report.html in the first folder among the inputs, else beside the first
    file. Raises PrunerZeroError for an input that is no result and for a page that cannot be
    written.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = list(dict.fromkeys(map(Path, given)))
    if not paths:
        raise PrunerZeroError("give at least one folder or file of results")
    results = [read_result(path) for path in paths]
    words = ["pruner-zero", "report", *map(str, paths)]
    if output is None:
        folder = next(filter(Path.is_dir, paths), paths[0].parent)
        output = folder / "report.html"
    else:
        words += ["-o", str(output)]
    file = check_file(output)
    # The name of a file can hold half a surrogate pair, which has no UTF-8.
    write_atomic(file, page(results, shlex.join(words)).encode(errors="replace"))
    return file


def page(results: Sequence[Result], command: str) -> str:
    """The HTML of a report on `results`, in their order; `command` made it."""
    environment = Environment(
        loader=PackageLoader("pruner_zero.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {
        "form": lambda value, spec: "" if value is None else format(value, spec),
        "shares": lambda row, names: ["" if (v := row[n]) is None else f"{v:+.1%}" for n in names],
        "label": _label,
        "mathml": to_mathml,
        "shortened": lambda text: clean(excerpt(text, 200)),
    }
    environment.globals |= {
        "compared": _COMPARED,
        "figures": figures,
        "origin": _origin,
        "resume": lambda run: shlex.join(["pruner-zero", "search", "--resume", str(run.path)]),
        "to_img": figures.to_img,
    }
    # The dense models, where there are any.
    made = [result for result in results if not isinstance(result, EvaluationRun)] or results
    models = dict.fromkeys(str(result.settings.get("model", "")) for result in made)
    meanings: dict[str, str] = {}
    for expression in (each for result in results for each in _expressions(result)):
        meanings |= expression.meanings()
    return environment.get_template("report.html").render(
        title="Pruning of " + ", ".join(Path(name).name or "a model" for name in models),
        results=[(_KINDS[type(result)], result) for result in results],
        meanings=dict(sorted(meanings.items())),
        measured=[result for result in results if isinstance(result, EvaluationRun)],
        commands=[*_commands(results), ("Reproduce this page", command)],
        strings=not all(map(commands.repeatable, results)),
        version=__version__,
    )


def _expressions(result: Result) -> list[Expression]:
    """The metrics that the page names for a result."""
    match result:
        case Study():
            return [record.candidate.expression for record in result.hall_of_fame.members]
        case PruneRun():
            return [result.expression] if result.expression else []
        case ComparisonRun():
            return [row.expression for row in result.rows if row.expression]
    return []


def _commands(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """The commands by what they do: those that make each result, then those that go on from it."""
    for result in results:
        if (repeated := commands.repeat(result)) is not None:
            yield f"Reproduce {result.path}", repeated
    compared = any(isinstance(result, ComparisonRun) for result in results)
    for result in results:
        # A search that found no metric has written no best.json.
        if isinstance(result, Study) and result.hall_of_fame.best:
            path = result.path
            yield f"Explain {path}", shlex.join(["pruner-zero", "analyze", str(path)])
            yield f"Prune with the best metric of {path}", commands.prune_with(result)
            if not compared:
                yield f"Compare the best metric of {path}", commands.compare_with(result)


def _origin(result: Result) -> str:
    """What determines a result, as YAML: settings, texts, versions."""
    facts = {
        "settings": result.settings,
        **{f"{use} windows": described for use, described in result.windows.items()},
        "versions": result.provenance,
        "timing": result.timing if isinstance(result, PruneRun | RecoveryRun) else {},
    }
    known = {name: dict(values) for name, values in facts.items() if values}
    return yaml.safe_dump(known, allow_unicode=True, sort_keys=False)


def _label(node: Expression) -> str:
    """The text of a node in a tree."""
    if isinstance(node, Call):
        return node.operator.infix[0] if node.operator.infix else node.operator.name
    return str(node).removesuffix(".0")


def _visible(value: object) -> object:
    return value if isinstance(value, Markup) else escape(clean(str(value)))
