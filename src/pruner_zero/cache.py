"""The folder for files that can be computed again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp


def default_cache() -> Path:
    """The cache folder: $PRUNER_ZERO_CACHE, or `pruner-zero` in the user's cache folder."""
    chosen = os.environ.get("PRUNER_ZERO_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pruner-zero"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled with files by `make` if it does not exist, and then renamed into place.

    All of them are on disk before. Several processes may do so at once. Raises what `make` raises,
    and OSError.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        make(partial)
        for path in (*partial.iterdir(), partial):
            sync(path)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process was faster, with the same content.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def sync(path: Path) -> None:
    """Wait until a file is on disk, or the names in a folder, for which no file's fsync waits."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
