"""How good a model still is: perplexity."""

from pruner_zero.evaluation.evaluate import evaluate
from pruner_zero.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "evaluate", "perplexity"]
