"""Each result in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pruner_zero.errors import excerpt
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.markup import clean, element
from pruner_zero.metric import Expression, parse
from pruner_zero.metric.canonical import Scope, canonical
from pruner_zero.report.curves import judged_alike
from pruner_zero.report.read import ComparisonRun, PruneRun, Result, SearchRun

_LONGEST = 200
_COMPETE = {
    "row": "within rows",
    "block": "within blocks of columns",
    "matrix": "within matrices",
    "global": "across the whole model",
}

_UPDATES = {
    "obs": "SparseGPT's sweep",
    "obs-iter": "SparseGPT's sweep, which chose them",
    "exact": "least squares",
}


def summary(result: Result, others: Sequence[Result]) -> Markup:
    """What came out of `result`; a search is also told by a comparison among `others`."""
    if isinstance(result, SearchRun):
        return _search(result, [one for one in others if isinstance(one, ComparisonRun)])
    return _prune(result) if isinstance(result, PruneRun) else _comparison(result)


def zeros(settings: Mapping[str, Any]) -> str:
    """The share or pattern of zeros that was asked for."""
    if settings.get("pattern"):
        return str(settings["pattern"])
    share = settings.get("sparsity")
    return f"{100 * share:g}%" if isinstance(share, float | int) else "no"


def _search(run: SearchRun, comparisons: Sequence[ComparisonRun]) -> Markup:
    best = HallOfFame.of(judged_alike(run)).best
    asked = _at(run.settings)
    if best is None:
        return Markup("No metric that works has been found {} yet.").format(asked)
    compete = _COMPETE[best.candidate.scope]
    scope = "" if run.settings.get("pattern") else f", compared {compete},"
    winner = _code(best.candidate.expression)
    found = Markup("Of {:,} metrics tried {}, {}{} prunes best: {}").format(
        len(run.records), asked, winner, scope, _value(best)
    )
    for comparison in comparisons:
        row = row_of(best, run, comparison)
        if row is not None:
            return found + Markup("; {}.").format(_beside(row, comparison))
    return found + Markup(".")


def row_of(best: Record, run: SearchRun, table: ComparisonRun) -> Mapping[str, Any] | None:
    """The measured row of a comparison at the same zeros that prunes as `best` does."""
    same = ("model", "sparsity", "pattern")
    if any(run.settings.get(name) != table.settings.get(name) for name in same):
        return None
    for row in table.rows:
        masked_alone = row.get("update") == "none" and "+refine" not in row["method"]
        alone = masked_alone and row.get("allocation", "uniform") == "uniform"
        if row["perplexity"] is None or not alone:
            continue
        scope: Scope = row.get("scope") or "row"
        same_masks = canonical(parse(row["expression"]), scope) == canonical(
            best.candidate.expression, scope
        )
        if same_masks and (row.get("scope") is None or scope == best.candidate.scope):
            return row
    return None


def _beside(own: Mapping[str, Any], table: ComparisonRun) -> Markup:
    """The perplexity of a row beside the best of the others and the dense model."""
    text = Markup("on {} its perplexity is {:,.2f}").format(_text(table), own["perplexity"])
    others = [
        row
        for row in table.rows
        if row is not own and row["perplexity"] is not None and "expression" in row
    ]
    if others:
        rival = min(others, key=lambda row: float(row["perplexity"]))
        text += Markup(", that of {} {:,.2f}").format(_code(rival["method"]), rival["perplexity"])
    return text + _dense(table)


def _comparison(run: ComparisonRun) -> Markup:
    ranked = sorted(
        (row for row in run.rows if row["perplexity"] is not None and "expression" in row),
        key=lambda row: float(row["perplexity"]),
    )
    if not ranked:
        return Markup("No method could be measured {}.").format(_at(run.settings))
    told = Markup("Of {} methods {}, {} has the lowest perplexity on {}, {:,.2f}").format(
        sum("expression" in row for row in run.rows),
        _at(run.settings),
        _code(ranked[0]["method"]),
        _text(run),
        ranked[0]["perplexity"],
    )
    if len(ranked) > 1:
        second = ranked[1]
        told += Markup(", before {} with {:,.2f}").format(
            _code(second["method"]), second["perplexity"]
        )
    return told + _dense(run) + Markup(".")


def _prune(run: PruneRun) -> Markup:
    means = _UPDATES.get(run.update, run.update)
    update = "" if run.update == "none" else f", the others corrected by {means}"
    return Markup(
        "{:.2%} of the weights in {:,} matrices of {} are zero, chosen by {} ({}){}."
    ).format(
        run.sparsity,
        len(run.matrices),
        _code(run.settings.get("model", "the model")),
        _code(run.expression),
        run.pattern,
        update,
    )


def _dense(table: ComparisonRun) -> Markup:
    for row in table.rows:
        if row["method"] == "dense" and row["perplexity"] is not None:
            return Markup("; the dense model has {:,.2f}").format(row["perplexity"])
    return Markup("")


def _at(settings: Mapping[str, Any]) -> Markup:
    model = _code(settings.get("model", "the model"))
    return Markup("for {} at {} zeros").format(model, zeros(settings))


def _value(best: Record) -> str:
    value, rung = best.evaluation.value, RUNGS[best.evaluation.rung]
    if rung == "reconstruction":
        return f"its closed-form error is {value:.4g}"
    where = "the search text" if rung == "all" else "a few windows of the search text"
    return f"perplexity {best.evaluation.perplexity:,.2f} on {where}"


def _text(table: ComparisonRun) -> Markup:
    return _code(table.windows.get("evaluation", {}).get("text", "the test text"))


def _code(text: Expression | str) -> Markup:
    return element("code", clean(excerpt(text, _LONGEST)))
