"""A journal of finished steps, so that an interruption of long work costs at most one step."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import (
    append_line,
    delete_half_written,
    is_intact,
    read_lines,
    sha256,
    with_checksum,
    writing,
)

JOURNAL = "journal.jsonl"
# The key of the lines that hold a decision in the place of a finished step.
_DECIDED = "decided"
T = TypeVar("T")


class Journal:
    """Finished steps under `folder`: one line for each, and the files that later steps read.

    A step is finished once its line is on disk. The files that the line names are written before
    it, and the line has their checksums. Files that a killed process left half written are deleted.

    identity: everything that decides the result, JSON values by names for messages. Raises
    PrunerZeroError for a folder that belongs to another identity, naming what changed, and for a
    damaged one; if `overwrite`, that run is deleted instead and a new one begins.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder = folder
        run = {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
            for name, value in identity.items()
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            delete_half_written(folder)
        written: list[dict[str, Any]] = []
        try:
            written = self._read(run)
        except PrunerZeroError:
            if not overwrite:
                raise
            with writing(folder):
                self.discard()
                folder.mkdir(exist_ok=True)
        self.lines = [line for line in written if _DECIDED not in line]
        self._decisions = {line[_DECIDED]: line["value"] for line in written if _DECIDED in line}
        if not (folder / JOURNAL).exists():
            append_line(folder / JOURNAL, {"run": run})

    @property
    def finished(self) -> int:
        """The number of finished steps: what the last line says, or one for each line."""
        return self.lines[-1].get("finished", len(self.lines)) if self.lines else 0

    def append(
        self, values: Mapping[str, Any], files: Mapping[str, str], unneeded: Iterable[str] = ()
    ) -> None:
        """Record one more finished step.

        files: the files that the next steps read, already written: SHA-256 by name under the
        folder. unneeded: names of earlier files, which are deleted now.
        """
        deleted = list(unneeded)
        line = with_checksum({**values, "files": dict(files), "unneeded": deleted})
        append_line(self.folder / JOURNAL, line)
        self.lines.append(line)
        for name in deleted:
            (self.folder / name).unlink(missing_ok=True)

    def decide(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, a JSON value; in a run that goes on, what it gave at the first start.

        For what may come out differently at each start, such as what fits into the memory.
        """
        if name not in self._decisions:
            line = {_DECIDED: name, "value": make(), "files": {}, "unneeded": []}
            append_line(self.folder / JOURNAL, with_checksum(line))
            self._decisions[name] = line["value"]
        value: T = self._decisions[name]
        return value

    def discard(self) -> None:
        """Delete the run, its journal first, so that a half-deleted run cannot be resumed."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, run: Mapping[str, str]) -> list[dict[str, Any]]:
        """The lines of the finished steps; none after another run that had not finished a step."""
        try:
            lines = read_lines(self.folder / JOURNAL)
        except PrunerZeroError as error:
            raise self._damaged(JOURNAL) from error
        if not lines or lines[0].get("run") != run:
            if any(_DECIDED not in line for line in lines[1:]):
                raise PrunerZeroError(
                    f"{self.folder} holds an unfinished run with other settings "
                    f"({changed(lines[0].get('run'), run)} changed): finish that run, choose "
                    "another output folder, or discard it with --overwrite"
                )
            (self.folder / JOURNAL).unlink(missing_ok=True)
            return []
        self._check(lines[1:])
        return lines[1:]

    def _check(self, lines: Iterable[dict[str, Any]]) -> None:
        needed: dict[str, str] = {}
        for line in lines:
            if not is_intact(line):
                raise self._damaged(JOURNAL)
            needed |= line["files"]
            for name in line["unneeded"]:
                needed.pop(name, None)
        for name, digest in needed.items():
            path = self.folder / name
            if not path.is_file() or sha256(path) != digest:
                raise self._damaged(name)

    def _damaged(self, name: str) -> PrunerZeroError:
        return PrunerZeroError(
            f"{self.folder / name} is damaged: start the unfinished run again with --overwrite"
        )


def changed(before: object, now: object) -> str:
    """The names of what differs between two runs, for a message."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return "the program or all of it"
    return ", ".join(name for name in {**now, **before} if before.get(name) != now.get(name))
