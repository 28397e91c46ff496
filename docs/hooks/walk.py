"""The walk of the default through the code: which file calls which, traced on a tiny model."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pruner_zero"
# Rooms whose files are shown; those of others, such as the root, are called from everywhere.
ROOMS = ("pruning", "calibration", "training", "sparsity", "metric")
# A file and the functions in it that other files call.
Files = dict[str, dict[str, None]]


class Walk:
    """The files that were run, each below the one that called it first.

    callers: by file, the file that called it first. called: by file, the functions that other files
    called, in order.
    """

    def __init__(self) -> None:
        self.callers: dict[str, str | None] = {}
        self.called: Files = {}

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        """Record one call; a function for `sys.setprofile`."""
        if event != "call" or not (file := _shown(frame)):
            return
        before = frame.f_back
        while before is not None and not _shown(before):
            before = before.f_back
        caller = _shown(before) if before else None
        name = frame.f_code.co_qualname.partition(".<locals>")[0].removesuffix(".__init__")
        if caller == file or any(part.startswith(("_", "<")) for part in name.split(".")):
            return
        self.callers.setdefault(file, caller)
        self.called.setdefault(file, {})[name] = None

    def lines(self, caller: str | None = None, depth: int = 0) -> Iterator[str]:
        """The files below `caller`, each with its functions."""
        for file, first in self.callers.items():
            if first == caller:
                names = ", ".join(list(self.called[file])[:3])
                yield f"{'  ' * depth + file:<42} {names}".rstrip()
                yield from self.lines(file, depth + 1)


def _shown(frame: FrameType) -> str | None:
    """The file of a frame inside the rooms that are shown, such as `pruning/prune.py`."""
    path = Path(frame.f_code.co_filename)
    if SOURCE not in path.parents or path.relative_to(SOURCE).parts[0] not in ROOMS:
        return None
    return path.relative_to(SOURCE).as_posix()


@contextmanager
def traced() -> Iterator[Walk]:
    """Record the calls of this thread within the context."""
    walk = Walk()
    sys.setprofile(walk.see)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def picture() -> str:
    """The walk of `prune MODEL --sparsity 0.5` on a tiny model, without the estimate, as text.

    It is made in a process of its own: what earlier work has left in caches is not called again.
    """
    paths = os.pathsep.join(map(str, (SOURCE.parent, ROOT)))
    made = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return f"```text\n{made.stdout}```"


def _walk() -> Walk:
    from tests.tiny import tiny_tokenizer
    from tests.tiny_models import tiny_model

    from pruner_zero import prune

    options: dict[str, Any] = {"sparsity": 0.5, "windows": 4, "seqlen": 16, "distill": 1}
    without = mock.patch("pruner_zero.pruning.prune.estimate", return_value=None)
    with tempfile.TemporaryDirectory() as folder, without, traced() as walk:
        prune(tiny_model("llama"), tokenizer=tiny_tokenizer(), cache=folder, **options)
    return walk


if __name__ == "__main__":
    print(*_walk().lines(), sep="\n")
