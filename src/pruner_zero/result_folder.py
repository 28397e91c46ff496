"""A result folder is built beside its final path and renamed to it when it is complete."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import (
    LOCK,
    check_writable,
    is_gguf,
    locked,
    write_atomic,
    write_json,
    writing,
)
from pruner_zero.journal import JOURNAL, Journal
from pruner_zero.progress import note
from pruner_zero.provenance import Cost

# In the folder of an unfinished run: the result, and a marker file that says it is complete. A
# marker without a result means that the result has been moved to its final path.
_RESULT, _COMPLETE = "result", "complete"
# A record is the second key of a GGUF file that this program wrote, within this many bytes.
_HEAD = 4096
TIMING = "timing.json"
# In the cards of pruned models.
NOT_RETRAINED = "Nothing was retrained."
# The keys of the records in a GGUF file that this program wrote: the JSON texts of pruning.json and
# recovery.json.
GGUF_RECORDS = "pruner_zero."
GGUF_PRUNING, GGUF_RECOVERY = f"{GGUF_RECORDS}pruning", f"{GGUF_RECORDS}recovery"

R = TypeVar("R")


def check_output(
    output: str | Path,
    overwrite: bool,
    inputs: Iterable[str | Path | None] = (),
    *,
    gguf: bool = False,
) -> Path:
    """The absolute path of `output`, links resolved.

    Raises PrunerZeroError if the result cannot be put there. `overwrite` allows to replace what
    `build_folder` wrote, with no other file beside it, and nothing else. inputs: the models that
    the command reads, of which the output must be none, nor hold or lie in one. Files that a
    run left beside it, killed after it had moved its result, are deleted. gguf: whether the result
    is a file where the name ends in .gguf, which is refused otherwise.
    """
    with writing(Path(output)):
        folder, here = Path(os.path.realpath(output)), Path.cwd()
        file = is_gguf(folder)
        if file and not gguf:
            raise PrunerZeroError(f"{folder} names a GGUF file: choose a folder for the result")
        if folder.is_mount():
            raise PrunerZeroError(f"{folder} is a mount point: choose a folder inside it")
        partial = _partial(folder)
        if partial.is_dir() and any(partial.iterdir()) and not (partial / LOCK).exists():
            raise PrunerZeroError(
                f"{partial}, where {folder} is made, holds other files: choose another folder"
            )
        if (partial / _COMPLETE).exists() and not (partial / _RESULT).exists():
            _discard(partial)
        if folder.exists() and folder.is_dir() is file:
            found, other = ("folder", "file") if file else ("file", "folder")
            raise PrunerZeroError(f"{folder} is a {found}: choose another {other} for the result")
        if folder.is_dir() and here.is_relative_to(folder):
            raise PrunerZeroError(f"{folder} is the current folder: choose a folder inside it")
        _check_apart(folder, inputs)
        if folder.exists() and (file or any(folder.iterdir())):
            if not overwrite:
                raise PrunerZeroError(
                    f"{folder} exists: choose another file, or add --overwrite"
                    if file
                    else f"{folder} is not empty: choose another folder, or add --overwrite"
                )
            _check_replaceable(folder)
        check_writable(folder)
    return folder


def _check_apart(folder: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise PrunerZeroError where `folder` is one of the `inputs`, or holds or lies in one."""
    for name in map(str, filter(None, inputs)):
        source = Path(os.path.realpath(name))
        within = source.is_relative_to(folder) or folder.is_relative_to(source)
        # The id of a model on the hub may be the path of an output, where nothing is yet.
        if within and (source.exists() or folder.exists()):
            raise PrunerZeroError(
                f"{folder} is, holds or lies in {name}, which this command reads: choose another "
                "output"
            )


def _check_replaceable(folder: Path) -> None:
    """Raise PrunerZeroError where `folder` has more than `build_folder` wrote."""
    if is_gguf(folder):
        with open(folder, "rb") as file:
            if GGUF_RECORDS.encode() not in file.read(_HEAD):
                raise PrunerZeroError(
                    f"{folder} was not written by this program, and --overwrite replaces no other "
                    "file: choose another file"
                )
        return
    try:
        written = set(json.loads((folder / TIMING).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PrunerZeroError(
            f"{folder} has no timing.json that lists what this program wrote, and --overwrite "
            "replaces no other folder: choose another folder"
        ) from None
    if others := _files(folder) - written:
        raise PrunerZeroError(
            f"{folder / min(others)} was not written by this program, and --overwrite would delete "
            "it: move it, or choose another folder"
        )


def _files(folder: Path) -> set[str]:
    """The files and links under `folder`, and its empty folders, by their paths in it."""
    paths = list(folder.rglob("*"))
    parents = {path.parent for path in paths}
    return {str(path.relative_to(folder)) for path in paths if path not in parents}


def build_folder(
    output: Path | None,
    overwrite: bool,
    step: str,
    identity: Mapping[str, Any],
    run: Callable[[Journal | None], R],
    write: Callable[[R, Journal, Path], Cost],
) -> R:
    """Work in `OUTPUT.partial`, write the result there, and move it to `output`.

    Without an `output`, only run. Where its name ends in .gguf, `write` writes a file, to which
    nothing is added.

    step: the word for a step, whose plural names the folder of the journal. identity: as `Journal`
    takes it. run: does the work after what the journal holds. write: writes the result to a new
    folder and returns the cost of this process; timing.json, with this cost, the step at which the
    process started and the names of all files, is added. Raises PrunerZeroError where another
    process works on the same output, where an unfinished run has another identity or other steps
    and `overwrite` is false, and what `run` raises; `output` is then unchanged, and the journal
    stays for the next call.
    """
    if output is None:
        return run(None)
    partial = _partial(output)
    with locked(partial):
        _discard_others(partial, f"{step}s", overwrite)
        journal = Journal(partial / f"{step}s", identity, overwrite)
        started = journal.finished
        if started:
            note(f"going on after {step} {started} in {partial}")
        try:
            # Checked again under the lock, since another process may have finished before it.
            check_output(output, overwrite, gguf=True)
            result = run(journal)
        except PrunerZeroError as error:
            if not journal.lines:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            raise PrunerZeroError(
                f"{error} ({partial} keeps the work up to {step} {journal.finished}: the same "
                "command goes on from there, and --overwrite discards it)"
            ) from error
        staged = partial / _RESULT
        (partial / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        cost = write(result, journal, staged)
        if not is_gguf(output):
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            timing: dict[str, Any] = {"finished": finished, **cost.to_json()}
            timing[f"first_{step}_of_this_process"] = started
            # What a later --overwrite may delete.
            timing["files"] = sorted({*_files(staged), TIMING})
            write_json(staged / TIMING, timing)
        write_atomic(partial / _COMPLETE, "")
        _move(staged, output, partial)
        _discard(partial)
    return result


def title_of(model: str) -> str:
    """The name of a model in the title of its card: the last part of its path or hub id."""
    # Absolute for ".", and with links as they are named.
    return Path(os.path.abspath(model)).name


def license_of(source: str) -> str:
    """The lines on the license in the head of the card in the folder `source`; empty for none."""
    card = Path(source) / "README.md"
    if not source or not card.is_file():
        return ""
    head = re.match(r"---\n(.*?)^---$", card.read_text(errors="replace"), re.DOTALL | re.MULTILINE)
    return "".join(re.findall(r"^license\w*: .*\n", head[1], re.MULTILINE)) if head else ""


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _discard(partial: Path) -> None:
    """Delete the folder of a finished run: first its folders, then the marker file, then the rest.

    So a folder that a kill leaves here still has its lock, by which `check_output` knows it.
    """
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    (partial / _COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _discard_others(partial: Path, name: str, overwrite: bool) -> None:
    """Delete unfinished runs in other folders than `name`; refuse them if not `overwrite`."""
    for journal in partial.glob(f"*/{JOURNAL}"):
        if journal.parent.name == name:
            continue
        with writing(journal):
            # The first line is the identity of the run; a torn line has no end.
            if not overwrite and journal.read_bytes().count(b"\n") > 1:
                raise PrunerZeroError(
                    f"{partial} holds an unfinished run of another command: finish that run, "
                    "choose another folder, or discard it with --overwrite"
                )
            # First, so that a half-deleted run cannot be resumed.
            journal.unlink()
            shutil.rmtree(journal.parent)


def _move(staged: Path, output: Path, partial: Path) -> None:
    """Replace `output` by `staged`; if that fails, `output` is put back."""
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
