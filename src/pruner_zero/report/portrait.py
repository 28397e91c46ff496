"""A metric as a page shows it: formula, tree, canonical form, nearest known relative."""

from dataclasses import dataclass
from typing import cast, get_args

from markupsafe import Markup

from pruner_zero.metric import Expression, to_latex, to_mathml
from pruner_zero.metric.canonical import Scope, canonical
from pruner_zero.report.relative import MAX_SIZE, nearest_relative
from pruner_zero.report.tree import draw_tree

# Larger trees are too wide for a page.
MOST_DRAWN = 80

GROUPS = {
    "row": "weights compete within their row",
    "block": "weights compete within blocks of 128 columns",
    "matrix": "weights compete within their matrix",
    "global": "all weights of the model compete",
}


@dataclass(frozen=True)
class Portrait:
    """One metric in words and pictures.

    group: which weights compete. tree: None where it would be too large. relative: the
    nearest known metric and how near it is, in a sentence.
    """

    text: str
    group: str
    size: int
    formula: Markup
    latex: str
    canonical: str
    canonical_formula: Markup
    relative: str
    tree: Markup | None


def portrait(expression: Expression, scope: str | None) -> Portrait:
    """The portrait of a metric whose weights compete in `scope`; None: inside N:M groups.

    Raises PrunerZeroError for an unknown scope.
    """
    seen = cast(Scope, scope if scope in get_args(Scope) else "row")
    form = canonical(expression, seen)
    return Portrait(
        str(expression),
        GROUPS[seen] if scope else "weights compete within their group of the pattern",
        expression.size,
        to_mathml(expression),
        to_latex(expression),
        str(form),
        to_mathml(form),
        _relative(expression, seen),
        draw_tree(f"The tree of {expression}", expression)
        if expression.size <= MOST_DRAWN
        else None,
    )


def _relative(expression: Expression, scope: Scope) -> str:
    relative = nearest_relative(expression, scope)
    if relative is None:
        return f"none is sought for more than {MAX_SIZE} nodes"
    known = relative.metric
    source = f"{known.name}, {known.text} ({known.citation})"
    if relative.distance == 0:
        return f"{source}, of the same canonical form: both give the same masks"
    nodes = "one node" if relative.distance == 1 else f"{relative.distance} nodes"
    return f"{source}, {nodes} away"
