"""The language of pruning metrics: expressions over W, G, X, O, D and S.

>>> from pruner_zero.metric import Metric
>>> str(Metric.of("pruner-zero"))
'abs(W * W) * mms(G)'
"""

from pruner_zero.metric.evaluate import ScoreError, evaluate, score
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal, call
from pruner_zero.metric.grammar import ParseError, format, parse
from pruner_zero.metric.latex import to_latex, to_mathml
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.named import NAMED, NamedMetric
from pruner_zero.metric.operator import Operator, Shape
from pruner_zero.metric.operators import EXTENDED, OPERATORS, PUBLISHED
from pruner_zero.metric.terminals import TERMINALS, Statistic, collected_for
from pruner_zero.metric.tree_json import from_tree, to_tree

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
    "format",
    "from_tree",
    "parse",
    "score",
    "to_latex",
    "to_mathml",
    "to_tree",
]
