"""The default: what `prune MODEL --sparsity 0.5` does, and what is left of it beside options."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pruner_zero.choices import Scope
from pruner_zero.metric.metric import Metric
from pruner_zero.models.matrices import Matrix, is_wide
from pruner_zero.pruning.recipe import Race, Recipe, Scored, Text
from pruner_zero.settings.calibration import TOKENS
from pruner_zero.settings.prune_settings import RULES
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import Unstructured

DEFAULT, WANDA, FISHER = "default", "wanda", "fisher"
# Steps of distillation of small models, and where units are removed.
DISTILL = 40
# Found by searches over two small models, with gradients of weights and without
# (benchmarks/universal.md).
EVOLVED = "W * G^0.85 * (column_normalize(W * G^0.55) * row_normalize(W + (W * X)^0.85))^0.35"
PRICED = "O * W * X^1.35 * row_odds(W * X) * sqrt(P * row_odds(W))"
# Where weights compete inside rows, one or the other is better; the second was found by hand
# (benchmarks/why.md).
# Source: weights over the norms of their columns, as in RIA (Zhang et al. 2024).
IN_ROWS = (WANDA, "W * column_normalize(W) * X")


def default(matrices: Sequence[Matrix], sparsity: float) -> Recipe:
    """The best recipe measured for zeros anywhere (benchmarks/proof.md, benchmarks/why.md).

    matrices: those to prune, whose inputs tell a wide model from a small one. In a wide one a mask
    by gradients of single weights fits the text that they were measured on (benchmarks/why.md).
    """
    wide = is_wide(matrices)
    everywhere = Unstructured(sparsity, "global")
    evolved = [Scored(Metric.of(text), everywhere) for text in _evolved(wide)]
    masks = Race((*evolved, Scored(Metric.of(WANDA), Unstructured(sparsity))))
    if wide:
        text = Text(4 * TOKENS, seqlen=256)
        return Recipe(DEFAULT, masks, text, reconstruct=2, distill=60)
    return Recipe(DEFAULT, masks, Text(2 * TOKENS, seqlen=256), reconstruct=4, distill=DISTILL)


def _evolved(wide: bool) -> tuple[str, ...]:
    """The metrics whose masks of the whole model race, the first one by itself where asked for."""
    return (PRICED,) if wide else (EVOLVED, PRICED)


def default_beside(matrices: Sequence[Matrix], pattern: Pattern, scope: Scope | None) -> Recipe:
    """The default where options say which weights compete."""
    recipe = default(matrices, pattern.sparsity)
    if not scope and isinstance(pattern, Unstructured):
        return recipe
    metrics = _evolved(is_wide(matrices))[:1] if pattern.reach == "model" else IN_ROWS
    entries = tuple(Scored(Metric.of(metric), pattern) for metric in metrics)
    return replace(recipe, masks=Race(entries) if len(entries) > 1 else entries[0])


def metric_of_units(structure: str | None) -> str:
    """The metric, or the rule, that chooses units where none is named."""
    rules: Mapping[Any, str] = RULES
    return rules.get(structure, FISHER)


def default_of_units(matrices: Sequence[Matrix], said: Recipe) -> Recipe:
    """The recipe `said`, and what follows where channels and heads go (benchmarks/smaller.md)."""
    steps = 60 if is_wide(matrices) else 3 * DISTILL
    return replace(said, text=Text(4 * TOKENS, seqlen=256), reconstruct=1, distill=steps)
