"""The modules in docs/hooks, which belong to no package."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def load_hook(name: str) -> ModuleType:
    """The module docs/hooks/NAME.py."""
    spec = spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Dataclasses look up the annotations of their module here.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
