"""The cache: files that can be computed again, who uses them, and which are deleted."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache as remember
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any, Literal

from pruner_zero.errors import NO_WINDOWS, PrunerZeroError
from pruner_zero.files import default_cache, locked, sync

try:
    import fcntl
except ImportError as error:
    raise PrunerZeroError(NO_WINDOWS) from error

# The file by which processes share an entry. It names the model, and its time is the last use.
USED = ".used"
_NAME = re.compile("(text-)?[0-9a-f]{20}")
_DAY = 24 * 3600
# The bounds of a cache: days since the last use, and gigabytes of statistics.
_DAYS, _GIGABYTES = ("PRUNER_ZERO_CACHE_DAYS", 90.0), ("PRUNER_ZERO_CACHE_GB", 20.0)

What = Literal["statistics", "text", "model"]


def cache_key(settings: Mapping[str, Any]) -> str:
    """The name of an entry: the settings that decide its content, as JSON, hashed."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Entry:
    """A folder of a cache.

    what: statistics of a dense model, text that it wrote, or a model in another format. model: its
    name, empty where that is not known. bytes: of all files. used: the time of the last use, in
    seconds since the epoch.
    """

    folder: Path
    what: What
    model: str
    bytes: int
    used: float


def use(folder: Path, model: str) -> ExitStack:
    """Create the entry `folder` of `model`, and keep others from deleting it until this is closed.

    Where nothing can be written nothing is kept, and no error is raised.
    """
    held = ExitStack()
    with suppress(OSError):
        # Another process may delete the folder meanwhile.
        for _ in range(9):
            folder.mkdir(parents=True, exist_ok=True)
            if file := _lock(folder / USED, fcntl.LOCK_SH):
                held.enter_context(file)
                if not os.fstat(file.fileno()).st_size:
                    os.write(file.fileno(), json.dumps({"model": model}).encode())
                os.utime(folder / USED)
                break
    return held


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Lock the entry `folder` while it is written, then delete what is beyond the cache's bounds.

    Every entry that was not used for $PRUNER_ZERO_CACHE_DAYS goes, and of statistics the least
    recently used beyond $PRUNER_ZERO_CACHE_GB; none that a process uses. Raises PrunerZeroError as
    `locked` does, and where a bound is no number.
    """
    oldest, room = time.time() - _DAY * _bound(*_DAYS), 1e9 * _bound(*_GIGABYTES)
    with locked(folder):
        yield
    for entry in entries(folder.parent):
        room -= entry.bytes if entry.what == "statistics" else 0
        if entry.used < oldest or (entry.what == "statistics" and room < 0):
            _delete(entry)


def entries(cache: str | Path | None = None) -> list[Entry]:
    """What the cache folder (default: the user's) holds, the most recently used first."""
    root = default_cache() if cache is None else Path(cache)
    folders = [path for path in root.glob("*") if _NAME.fullmatch(path.name)]
    found = []
    for folder in [*folders, *(root / "models").glob("*")]:
        what: What = "text" if folder.name.startswith("text-") else "statistics"
        with suppress(OSError):
            model, used = "", folder.stat().st_mtime
            with suppress(OSError, ValueError, TypeError, KeyError):
                model = str(json.loads((folder / USED).read_bytes())["model"])
                used = (folder / USED).stat().st_mtime
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            found.append(Entry(folder, what if folder in folders else "model", model, size, used))
    return sorted(found, key=lambda entry: -entry.used)


def clear(older_than: float = 0, cache: str | Path | None = None) -> list[Entry]:
    """Delete what the cache (default: the user's) holds; return the entries that are deleted.

    older_than: days since the last use. Entries that a running process uses stay.
    """
    oldest = time.time() - _DAY * older_than
    return [entry for entry in entries(cache) if entry.used <= oldest and _delete(entry)]


def _delete(entry: Entry) -> bool:
    """Delete an entry, unless a process uses it."""
    with suppress(OSError):
        if file := _lock(entry.folder / USED, fcntl.LOCK_EX | fcntl.LOCK_NB):
            with file:
                shutil.rmtree(entry.folder)
            return True
    return False


def _lock(path: Path, operation: int) -> IO[str] | None:
    """Open a file, created if missing, and lock it by flock's `operation` until it is closed.

    By flock itself, since a lock of filelock cannot be shared. None where another process has it,
    or deleted the file just now. Raises OSError.
    """
    file = open(path, "a+")  # noqa: SIM115
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(file, operation)
        # If the folder was deleted and created again just now, this lock is of a deleted file.
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    file.close()
    return None


def _bound(variable: str, default: float) -> float:
    text = os.environ.get(variable, str(default))
    with suppress(ValueError):
        return float(text)
    raise PrunerZeroError(f"${variable} is '{text}': give a number")


@remember
def _used_to_the_end(folder: Path, model: str) -> ExitStack:
    """Use a folder as long as this process runs."""
    return use(folder, model)


def made_once(folder: Path, make: Callable[[Path], None], model: str) -> Path:
    """`folder`, filled with files by `make` if it does not exist, and then renamed into place.

    All of them are on disk before. Several processes may do so at once. Until this process ends,
    no other one deletes the folder, a copy of `model`. Raises what `make` raises, and OSError.
    """
    if folder.is_dir():
        _used_to_the_end(folder, model)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        with use(partial, model):
            make(partial)
            for path in (*partial.iterdir(), partial):
                sync(path)
            try:
                os.replace(partial, folder)
            except OSError:
                # Another process was faster, with the same content.
                if not folder.is_dir():
                    raise
            _used_to_the_end(folder, model)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
