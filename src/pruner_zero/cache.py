"""Where this program keeps what it can compute again."""

import os
from pathlib import Path


def default_cache() -> Path:
    """The cache folder: $PRUNER_ZERO_CACHE, or `pruner-zero` in the user's cache folder."""
    own = os.environ.get("PRUNER_ZERO_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pruner-zero"
