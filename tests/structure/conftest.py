"""The fixtures of tests of pruning."""

from tests.pruning.conftest import new_store, pruned_by, windows

__all__ = ["new_store", "pruned_by", "windows"]
