"""The fixtures of tests of pruning."""

from tests.pruning.conftest import new_store, windows

__all__ = ["new_store", "windows"]
