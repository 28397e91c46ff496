"""How good a model still is: perplexity, scores in zero-shot and few-shot tasks; how fast."""

from pruner_zero.evaluation.evaluate import evaluate
from pruner_zero.evaluation.perplexity import Perplexity, perplexity
from pruner_zero.evaluation.speed import Speed, measure_speed
from pruner_zero.evaluation.tasks import TaskResult

__all__ = [
    "Perplexity",
    "Speed",
    "TaskResult",
    "evaluate",
    "measure_speed",
    "perplexity",
]
