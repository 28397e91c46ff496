"""A metric as a page shows it: formula, tree, canonical form."""

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from pruner_zero.choices import Group
from pruner_zero.metric import Expression, to_latex, to_mathml
from pruner_zero.metric.canonical import canonical
from pruner_zero.report.tree import draw_tree

# Larger trees are too wide for a page.
MOST_DRAWN = 80

# Which weights are compared with each other, by scope.
COMPARED: Mapping[str, str] = {
    "row": "within rows",
    "block": "within blocks of 128 columns",
    "matrix": "within matrices",
    "global": "across the whole model",
    "unit": "as whole units",
}


def group_of(scope: str | None, pattern: str) -> str | None:
    """The comparison group of a result: its scope, `unit` for removed units, None for N:M."""
    return scope or (None if re.fullmatch(r"\d+:\d+", pattern) else "unit")


def portrait(expression: Expression, scope: str | None) -> dict[str, Any]:
    """The values for the template `portrait`, by name; its tree is None where it is too large.

    scope: None where weights are compared within N:M groups.
    """
    seen = cast(Group, scope if scope in get_args(Group) else "row")
    drawn = expression.size <= MOST_DRAWN
    return {
        "text": str(expression),
        "compared": COMPARED[seen] if scope else "within the groups of the pattern",
        "size": expression.size,
        "formula": to_mathml(expression),
        "latex": to_latex(expression),
        "canonical": str(canonical(expression, seen)),
        "tree": draw_tree(f"The tree of {expression}", expression) if drawn else None,
    }
