"""The language of pruning metrics: expressions over W, G, X, O, D and S.

>>> from pruner_zero.metric import Metric
>>> str(Metric.of("pruner-zero"))
'abs(W * W) * mms(G)'
"""

from pruner_zero.metric.evaluate import ScoreError, evaluate, score
from pruner_zero.metric.expression import (
    TERMINALS,
    Call,
    Constant,
    Expression,
    Statistic,
    Terminal,
    call,
    collected_for,
)
from pruner_zero.metric.grammar import ParseError, from_tree, parse, to_tree
from pruner_zero.metric.latex import to_latex, to_mathml
from pruner_zero.metric.metric import NAMED, Metric, NamedMetric
from pruner_zero.metric.operators import EXTENDED, OPERATORS, PUBLISHED, Operator, Shape

__all__ = [
    "EXTENDED",
    "NAMED",
    "OPERATORS",
    "PUBLISHED",
    "TERMINALS",
    "Call",
    "Constant",
    "Expression",
    "Metric",
    "NamedMetric",
    "Operator",
    "ParseError",
    "ScoreError",
    "Shape",
    "Statistic",
    "Terminal",
    "call",
    "collected_for",
    "evaluate",
    "from_tree",
    "parse",
    "score",
    "to_latex",
    "to_mathml",
    "to_tree",
]
