"""`pruner-zero metric`: show, list and convert metrics."""

import json
from typing import Annotated

import typer

from pruner_zero.cli.options import AsJson
from pruner_zero.cli.tables import print_table

app = typer.Typer(
    help="Show, list and convert metrics.", no_args_is_help=True, rich_markup_mode="rich"
)

Spec = Annotated[
    str, typer.Argument(metavar="METRIC", help="A name, an expression, or a .json tree file.")
]


@app.command("show")
def show(metric: Spec, as_json: AsJson = False) -> None:
    """Show METRIC: its formula, its size, and the statistics it needs."""
    from pruner_zero.metric import NAMED, Metric, parse

    shown = Metric.of(metric)
    expression = shown.expression
    facts: dict[str, object] = {
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
    # A tree file may have the name of a known metric and another expression.
    named = NAMED.get(shown.name or "")
    if named is not None and parse(named.text) == expression:
        facts["description"] = named.description
        facts["source"] = named.citation
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} ×{count}" for key, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        if value is not None:
            print(f"{name:<12} {value}")


@app.command("list")
def list_metrics(as_json: AsJson = False) -> None:
    """List the known metrics, and the operators and terminals of expressions."""
    from pruner_zero.metric import EXTENDED, NAMED, PUBLISHED, TERMINALS

    if as_json:
        operators = dict.fromkeys(PUBLISHED, "published") | dict.fromkeys(EXTENDED, "extended")
        metrics = {name: named.text for name, named in NAMED.items()}
        print(
            json.dumps({"metrics": metrics, "operators": operators, "terminals": list(TERMINALS)})
        )
        return
    rows = [(name, named.citation, named.text) for name, named in NAMED.items()]
    print_table(("name", "source", "expression"), rows, left=3)
    print(f"published operators: {' '.join(PUBLISHED)}")
    print(f"extended operators: {' '.join(EXTENDED)}")
    print(f"terminals: {' '.join(TERMINALS)}, and numbers")


@app.command("latex")
def latex(metric: Spec) -> None:
    """Print METRIC as LaTeX."""
    from pruner_zero.metric import Metric

    print(Metric.of(metric).latex)


@app.command("json")
def as_tree(metric: Spec) -> None:
    """Print METRIC as a tree in the released JSON form, which --metric FILE.json reads."""
    from pruner_zero.metric import Metric

    print(json.dumps(Metric.of(metric).to_tree(), indent=2))
