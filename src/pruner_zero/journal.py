"""A journal of finished steps, so that an interruption of long work costs at most one step."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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

# The identity of a run: one text, or everything that decides its result, by names for messages.
Run = str | Mapping[str, str]


class Journal:
    """Finished steps under `folder`: one line for each, and the files that later steps read.

    A step is finished once its line is on disk. The files that the line names are written before
    it, and the line has their checksums. Files that a killed process left half written are deleted.
    `run` identifies the settings. Raises PrunerZeroError for
    a folder that belongs to other settings, naming what changed, and for a damaged one.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            delete_half_written(folder)
        try:
            lines = read_lines(folder / JOURNAL)
        except PrunerZeroError as error:
            raise self._damaged(JOURNAL) from error
        if lines and lines[0].get("run") != run:
            if len(lines) > 1:
                raise PrunerZeroError(
                    f"{folder} holds an unfinished run with other settings "
                    f"({changed(lines[0].get('run'), run)} changed): finish that run, choose "
                    "another output folder, or discard it with --overwrite"
                )
            # That run was stopped before its first step, so there is nothing to lose.
            (folder / JOURNAL).unlink()
            lines = []
        if not lines:
            append_line(folder / JOURNAL, {"run": run if isinstance(run, str) else dict(run)})
        self.lines: list[dict[str, Any]] = lines[1:]
        self._check()

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

    def discard(self) -> None:
        """Delete the run, its journal first, so that a half-deleted run cannot be resumed."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self) -> None:
        needed: dict[str, str] = {}
        for line in self.lines:
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
