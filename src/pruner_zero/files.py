"""Atomic writes, checksums, lines of journals, locks of folders; whether the hub can be reached."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from pruner_zero.errors import PrunerZeroError

_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "no space left, free some disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "not writable"),
}
# The names of the incomplete files of `committing`.
_HALF_WRITTEN = re.compile(r".+\.\d+\.partial")
CHECKSUM = "sha256"
_PAGE = b"<!doctype html"
# The file by which `locked` locks a folder.
LOCK = ".lock"


def default_cache() -> Path:
    """The cache folder: $PRUNER_ZERO_CACHE, or `pruner-zero` in the user's cache folder."""
    return Path(os.environ.get("PRUNER_ZERO_CACHE") or user_cache_path("pruner-zero"))


def is_gguf(path: Path) -> bool:
    """Whether `path` names a GGUF file."""
    return path.suffix.lower() == ".gguf"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every OSError while `path` is written, such as of a full disk, into PrunerZeroError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors gives the system's error only in words: "... (os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code is None:
            raise
        why = _REASONS.get(code) or os.strerror(code).lower()
        # Not made absolute, which fails where the current folder was deleted.
        cached = " (--cache, $PRUNER_ZERO_CACHE)" if default_cache() in path.parents else ""
        raise PrunerZeroError(
            f"{path} cannot be written ({why}): mend that or choose another place{cached}"
        ) from error


def check_writable(path: Path) -> None:
    """Raise PrunerZeroError if `path` cannot be created; called before any work is spent on it."""
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise PrunerZeroError(f"{folder} is not a folder: choose another place than {path}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PrunerZeroError(f"{folder} is not writable: choose another place than {path}")


def check_file(path: str | Path, keys: Collection[str] = ()) -> Path:
    """The path of a file to write, checked before any work is spent on it.

    An existing file is replaced only where it is an earlier output: a JSON object with one of
    `keys`, or, without any, an HTML page. Raises PrunerZeroError for another file, a folder, and a
    place that cannot be written.
    """
    file = Path(path)
    # An empty name is the current folder.
    if file.is_dir():
        raise PrunerZeroError(f"{file} is a folder: name a file as --output")
    with writing(file):
        if file.exists() and not _is_earlier_output(file, keys):
            raise PrunerZeroError(f"{file} is no earlier output: choose another file as --output")
    check_writable(file)
    return file


def _is_earlier_output(file: Path, keys: Collection[str]) -> bool:
    if not keys:
        with open(file, "rb") as opened:
            return opened.read(1000).lstrip().lower().startswith(_PAGE)
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and not values.keys().isdisjoint(keys)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`: readers, and a crash at any time, find the old file or the new one.

    Missing folders are created. Raises PrunerZeroError where it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with committing(path) as partial, open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, as `write_atomic` does."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if missing, for this process alone.

    Files that a killed process left half written in it are deleted; those in a folder inside it
    that has a `Journal` are deleted when that is opened. The folder may be deleted while it is
    locked. Raises PrunerZeroError where another process has the lock.
    """
    with ExitStack() as held:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(folder / LOCK, blocking=False))
            except Timeout as error:
                raise PrunerZeroError(
                    f"another process is working in {folder}: wait for it or choose another folder"
                ) from error
        delete_half_written(folder)
        yield


def delete_half_written(folder: Path) -> None:
    """Delete the files in `folder` that a killed process left half written."""
    for path in folder.glob("*.partial"):
        if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def with_checksum(line: Mapping[str, Any]) -> dict[str, Any]:
    """A journal line and, under CHECKSUM, the SHA-256 of its JSON text with sorted keys."""
    text = json.dumps(line, sort_keys=True)
    return {**line, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()}


def is_intact(line: Mapping[str, Any]) -> bool:
    """Whether a line that was read back still matches the checksum that `with_checksum` added."""
    return line == with_checksum({key: line[key] for key in line if key != CHECKSUM})


def append_line(path: Path, value: object) -> None:
    """Append `value` as one JSON line and wait until it is on disk.

    A torn last line, left by a crash, is cut off first.
    """
    line = json.dumps(value, sort_keys=True).encode() + b"\n"
    with writing(path), open(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        if not end:
            sync(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a journal, without a torn last line; an empty list where there is no file.

    Raises PrunerZeroError where an earlier line is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror}") from error
    values = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PrunerZeroError(f"line {number} of {path} is damaged: restore the file")
        values.append(value)
    return values


@contextmanager
def committing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it is synced and renamed to `path`, or deleted on an error.

    The name contains the process id, so that two processes never write to the same file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file is on disk, or the names in a folder, for which no file's fsync waits."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hub_reachable() -> bool:
    """Whether the hub answers in $HF_HUB_ETAG_TIMEOUT seconds (10 by default).

    True in offline mode, where the cache is read instead.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        # Any error means the same here; its type depends on the transport library.
        return False
    return True
