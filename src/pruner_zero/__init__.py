"""Evolve, explain and apply pruning metrics for large language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.version import __version__

if TYPE_CHECKING:
    from pruner_zero.analysis.analysis import analyze
    from pruner_zero.evolution.run import search
    from pruner_zero.evolution.study import Study
    from pruner_zero.measuring.comparing import compare
    from pruner_zero.measuring.evaluating import evaluate
    from pruner_zero.metric.metric import Metric
    from pruner_zero.models.load import load_model
    from pruner_zero.pruning.prune import prune
    from pruner_zero.recovery.recover import recover

_MODULES = {
    "Metric": "metric.metric",
    "Study": "evolution.study",
    "analyze": "analysis.analysis",
    "compare": "measuring.comparing",
    "evaluate": "measuring.evaluating",
    "load_model": "models.load",
    "prune": "pruning.prune",
    "recover": "recovery.recover",
    "search": "evolution.run",
}

__all__ = [
    "Metric",
    "PrunerZeroError",
    "Study",
    "__version__",
    "analyze",
    "compare",
    "evaluate",
    "load_model",
    "prune",
    "recover",
    "search",
]


def __getattr__(name: str) -> Any:
    # Torch and transformers take seconds to import; `pruner-zero --help` need not wait.
    if name in _MODULES:
        return getattr(import_module(f"pruner_zero.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'pruner_zero' has no attribute '{name}'")
