"""How good a model still is: perplexity, and scores in zero-shot and few-shot tasks."""

from pruner_zero.evaluation.evaluate import evaluate
from pruner_zero.evaluation.perplexity import Perplexity, perplexity
from pruner_zero.evaluation.tasks import TaskResult, evaluate_tasks

__all__ = ["Perplexity", "TaskResult", "evaluate", "evaluate_tasks", "perplexity"]
