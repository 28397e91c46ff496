"""The modules in docs/hooks, which belong to no package."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def load_hook(name: str) -> ModuleType:
    """The module docs/hooks/NAME.py, which finds the others as its script does."""
    folder = str(DOCS / "hooks")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)
