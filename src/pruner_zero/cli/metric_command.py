"""`pruner-zero metric`: show, list and convert metrics."""

import json
from typing import Annotated

import typer

from pruner_zero.cli.options import AsJson
from pruner_zero.cli.terminal import print_table

app = typer.Typer(
    help="Show, list and convert metrics.", no_args_is_help=True, rich_markup_mode="rich"
)

Spec = Annotated[
    str, typer.Argument(metavar="METRIC", help="A name, an expression, or a .json tree file.")
]


@app.command("show")
def show(metric: Spec, as_json: AsJson = False) -> None:
    """Show METRIC: its formula, its size, the statistics it needs, and what its parts mean."""
    from pruner_zero.metric.grammar import parse
    from pruner_zero.metric.metric import NAMED, Metric

    facts: dict[str, object] = {}
    meanings: dict[str, str] = {}
    if metric in (rules := _rules()):
        description, source = rules[metric]
        facts = {"name": metric, "description": description, "source": source}
    else:
        shown = Metric.of(metric)
        expression = shown.expression
        facts = {
            "expression": str(shown),
            "name": shown.name,
            "scope": shown.scope,
            "size": expression.size,
            "depth": expression.depth,
            "needs": sorted(shown.needs),
            "leaves": dict(expression.leaf_counts()),
            "operators": dict(expression.operator_counts()),
            "latex": shown.latex,
        }
        meanings = expression.meanings()
        # A tree file may have the name of a known metric and another expression.
        named = NAMED.get(shown.name or "")
        if named is not None and parse(named.text) == expression:
            facts |= {"description": named.description, "source": named.citation}
    if as_json:
        print(json.dumps(facts | {"meanings": meanings}))
        return
    for name, value in {**facts, **meanings}.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} ×{count}" for key, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        if value is not None:
            print(f"{name:<12} {value}")


@app.command("list")
def list_metrics(as_json: AsJson = False) -> None:
    """List the names that --metric takes, and the terminals and operators of expressions."""
    from pruner_zero.metric.expression import TERMINALS
    from pruner_zero.metric.metric import NAMED
    from pruner_zero.metric.operators import OPERATORS, PUBLISHED

    sets = {name: "published" if name in PUBLISHED else "extended" for name in OPERATORS}
    meanings = {name: terminal.meaning for name, terminal in TERMINALS.items()}
    meanings |= {name: operator.described for name, operator in OPERATORS.items()}
    if as_json:
        listing = {
            "metrics": {name: metric.text for name, metric in NAMED.items()},
            "rules": {name: description for name, (description, _) in _rules().items()},
            "operators": sets,
            "terminals": list(TERMINALS),
            "meanings": meanings,
        }
        print(json.dumps(listing))
        return
    rows = [(name, metric.citation, metric.text) for name, metric in NAMED.items()]
    rules = [(name, source, description) for name, (description, source) in _rules().items()]
    print_table(("name", "source", "expression"), rows + rules, left=3)
    print()
    print_table(("terminal", "meaning"), [(name, meanings[name]) for name in TERMINALS], left=2)
    print()
    functions = [(name, sets[name], meanings[name]) for name in OPERATORS]
    print_table(("operator", "set", "meaning"), functions, left=3)


@app.command("latex")
def latex(metric: Spec) -> None:
    """Print METRIC as LaTeX."""
    from pruner_zero.metric.metric import Metric

    print(Metric.of(metric).latex)


@app.command("json")
def as_tree(metric: Spec) -> None:
    """Print METRIC as a tree in the released JSON form, which --metric FILE.json reads."""
    from pruner_zero.metric.metric import Metric

    print(json.dumps(Metric.of(metric).to_tree(), indent=2))


def _rules() -> dict[str, tuple[str, str]]:
    """The names that --metric takes and that are no expressions: what they do, and the source."""
    from pruner_zero.metric.metric import SPARSEGPT_SCORE
    from pruner_zero.pruning.notation import SPARSEGPT
    from pruner_zero.settings.prune_settings import BLOCK_INFLUENCE, REAP, TOKEN_COUNT

    return {
        SPARSEGPT: (
            f"{SPARSEGPT_SCORE} within blocks of 128 columns, followed by --update obs",
            "Frantar & Alistarh 2023, SparseGPT, arXiv 2301.00774",
        ),
        BLOCK_INFLUENCE: (
            "with --structure blocks: how much a block changes its input",
            "Men et al. 2024, ShortGPT, arXiv 2403.03853",
        ),
        REAP: (
            "with --structure experts: router weight times norm of the expert's output",
            "Lasby et al. 2025, REAP, arXiv 2510.13999",
        ),
        TOKEN_COUNT: (
            "with --structure vocabulary: how often a token occurs and is expected",
            "Abdaoui et al. 2020, Load What You Need, arXiv 2010.05609",
        ),
    }
