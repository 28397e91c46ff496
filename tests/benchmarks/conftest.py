"""The benchmarks, which belong to no package, and import each other by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a module of benchmarks by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module
