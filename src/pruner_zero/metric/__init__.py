"""The language of pruning metrics: expressions over W, G, X, O, D and S.

>>> from pruner_zero import Metric
>>> str(Metric.of("pruner-zero"))
'abs(W * W) * mms(G)'
"""
