"""Evolve, explain and apply pruning metrics for large language models."""

from pruner_zero.version import __version__

__all__ = ["__version__"]
