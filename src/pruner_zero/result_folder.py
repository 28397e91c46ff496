"""A result folder that is built up beside its place and moves there once it is whole."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import check_writable, locked, write_atomic, writing
from pruner_zero.journal import Journal, Run
from pruner_zero.provenance import Cost


class Checkpoint(Protocol):
    """What is durable of an unfinished run."""

    @property
    def journal(self) -> Journal:
        """The journal behind it."""


# Says that the result of a run is whole: where it is no longer beside this, it has been moved.
_RESULT, _WHOLE = "result", "whole"

C = TypeVar("C", bound=Checkpoint)
R = TypeVar("R")


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise PrunerZeroError where `folder` cannot become the result.

    What a run that was killed right after its end has left beside `folder` goes.
    """
    partial = _partial(folder)
    if (partial / _WHOLE).exists() and not (partial / _RESULT).exists():
        _discard(partial)
    if folder.exists() and not folder.is_dir():
        raise PrunerZeroError(f"{folder} is a file: choose another folder for the result")
    if folder.is_mount():
        raise PrunerZeroError(f"{folder} is a mount point: choose a folder inside it")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise PrunerZeroError(f"{folder} is not empty: choose another folder, or add --overwrite")
    check_writable(folder)


def build_folder(
    output: Path,
    overwrite: bool,
    checkpoint_in: Callable[[Path], C],
    run: Callable[[C], R],
    write: Callable[[R, C, Path], None],
) -> R:
    """Work in `OUTPUT.partial`, write the result there, and move it to `output`.

    checkpoint_in: opens what an earlier run left under a folder. run: the work, from there.
    write: puts its result into a new folder. Raises PrunerZeroError where another process
    does the same, and what the work raises; `output` is then as it was, and what the
    checkpoint holds stays for the next call.
    """
    partial = _partial(output)
    with locked(partial):
        checkpoint = checkpoint_in(partial)
        try:
            # Again, now that no other process can finish it meanwhile.
            check_output(output, overwrite)
            result = run(checkpoint)
        except PrunerZeroError:
            if not checkpoint.journal.lines:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        staged = partial / _RESULT
        (partial / _WHOLE).unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        write(result, checkpoint, staged)
        write_atomic(partial / _WHOLE, "")
        _move(staged, output, partial)
        _discard(partial)
    return result


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _discard(partial: Path) -> None:
    """Delete what a finished run leaves, and last of all what says that it is finished."""
    for left in partial.glob("*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


def take_up(
    kind: Callable[[Path, Run], C], folder: Path, identity: Mapping[str, Any], overwrite: bool
) -> C:
    """The unfinished run of this `identity` under `folder`; one of another gives way if told.

    identity: what decides the run, by the names that people know. Raises PrunerZeroError,
    naming what changed, where there is another and `overwrite` is false.
    """
    run = {name: _digest(value) for name, value in identity.items()}
    try:
        return kind(folder, run)
    except PrunerZeroError:
        if not overwrite:
            raise
    shutil.rmtree(folder)
    return kind(folder, run)


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_cost(folder: Path, cost: Cost, started: Mapping[str, int]) -> None:
    """Write timing.json: what this process took, and (as `started` names it) where it began."""
    timing = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **cost.to_json(),
        **started,
    }
    write_atomic(folder / "timing.json", json.dumps(timing, indent=2) + "\n")


def _move(staged: Path, output: Path, partial: Path) -> None:
    """Put `staged` in the place of `output`; where that fails, `output` is as it was."""
    replaced = partial / f"replaced-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    with writing(output):
        if os.path.lexists(output):
            output.rename(replaced)
        try:
            staged.rename(output)
        except OSError:
            if replaced.exists():
                replaced.rename(output)
            raise
