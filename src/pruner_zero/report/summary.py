"""Each result in one sentence."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pruner_zero.errors import excerpt
from pruner_zero.evolution import Study
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.markup import clean, element
from pruner_zero.metric import Expression
from pruner_zero.pruning.method import describe_steps
from pruner_zero.report.portrait import COMPARED
from pruner_zero.report.read import ComparisonRun, PruneRun, Result

_LONGEST = 200


def summary(result: Result) -> Markup:
    """The result in one sentence."""
    match result:
        case Study():
            return _search(result)
        case PruneRun():
            return _prune(result)
    return _comparison(result)


def zeros(settings: Mapping[str, Any]) -> str:
    """The share or pattern of zeros in the settings."""
    if settings.get("pattern"):
        return str(settings["pattern"])
    share = settings.get("sparsity")
    return f"{100 * share:g}%" if isinstance(share, float | int) else "no"


def _search(study: Study) -> Markup:
    best = study.hall_of_fame.best
    setting = _at(study.settings)
    if best is None:
        return Markup("No metric that works has been found {} yet.").format(setting)
    scope = f", compared {COMPARED[best.candidate.scope]},"
    return Markup("Of {:,} metrics tried{} {}, {}{} prunes best: {}.").format(
        len(study.records),
        "" if study.ended else " so far",
        setting,
        _code(best.candidate.expression),
        "" if study.settings.get("pattern") else scope,
        _value(study, best),
    )


def _comparison(run: ComparisonRun) -> Markup:
    if not run.ranked:
        return Markup("No method could be measured {}.").format(_at(run.settings))
    first, *rest = run.ranked
    sentence = Markup("Of {} methods {}, {} has the lowest perplexity on {}, {:,.2f}").format(
        len(run.competing),
        _at(run.settings),
        _code(first["method"]),
        _code(run.windows.get("evaluation", {}).get("text", "the test text")),
        first["perplexity"],
    )
    if rest:
        sentence += Markup(", before {} with {:,.2f}").format(
            _code(rest[0]["method"]), rest[0]["perplexity"]
        )
    for row in run.rows:
        if row["method"] == "dense" and row["perplexity"] is not None:
            sentence += Markup("; the dense model has {:,.2f}").format(row["perplexity"])
    return sentence + Markup(".")


def _prune(run: PruneRun) -> Markup:
    steps = describe_steps(run.steps, run.asymmetric)
    if run.distill:
        steps += f", the kept weights trained for {run.distill} steps towards the dense model"
    return Markup(
        "{:.2%} of the weights in {:,} matrices of {} are {}, chosen by {} ({}){}."
    ).format(
        run.sparsity,
        len(run.matrices),
        _code(run.settings.get("model", "the model")),
        "removed" if run.settings.get("structure") else "zero",
        _code(run.expression),
        run.pattern,
        steps,
    )


def _at(settings: Mapping[str, Any]) -> Markup:
    model = _code(settings.get("model", "the model"))
    if settings.get("structure"):
        units, left = settings["structure"], settings.get("parameters")
        size = (
            f"{zeros(settings)} fewer {units}" if left is None else f"{left} parameters by {units}"
        )
        return Markup("for {} at {}").format(model, size)
    if settings.get("pattern") is None and settings.get("sparsity") is None:
        # Methods that remove whole units may bring their shares.
        return Markup("for {}").format(model)
    return Markup("for {} at {} zeros").format(model, zeros(settings))


def _value(study: Study, best: Record) -> str:
    winner = study.final_race.winner
    if winner is not None:
        return f"perplexity {winner.perplexity:,.2f} on fresh windows of the search text"
    rung = RUNGS[best.evaluation.rung - 1]
    if rung == "reconstruction":
        return f"its closed-form error is {best.evaluation.value:.4g}"
    where = "the search text" if rung == "all" else "a few windows of the search text"
    return f"perplexity {best.evaluation.perplexity:,.2f} on {where}"


def _code(text: Expression | str) -> Markup:
    return element("code", clean(excerpt(text, _LONGEST)))
