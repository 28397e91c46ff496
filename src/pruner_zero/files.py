"""Files that are whole or not there: atomic writes, checksums, locks."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pruner_zero.errors import PrunerZeroError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a full quota or a refused write under `path` into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in text or "File too large" in text:
            raise PrunerZeroError(
                f"no space left to write {path}: free some disk or choose another folder"
            ) from error
        if isinstance(error, PermissionError) or "Permission denied" in text:
            raise PrunerZeroError(f"{path} is not writable: choose another folder") from error
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with open(partial, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        _commit(partial, path)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically and return its SHA-256."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
        digest = sha256(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        _commit(partial, path)
    return digest


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; raise where another process holds it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PrunerZeroError(
                f"another process is working in {folder}: wait for it or choose another folder"
            ) from error
        yield


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a journal; nothing where it does not exist; a torn last line is dropped.

    Raises PrunerZeroError where an earlier line is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    values = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise PrunerZeroError(
                f"line {number} of {path} is damaged: restore the file"
            ) from error
    return values


def _commit(partial: Path, path: Path) -> None:
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
