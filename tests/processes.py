"""The program as a process of its own, to be killed, limited and raced."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path


def start(
    *arguments: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """`python -m pruner_zero ARGUMENTS`; `before` runs in the child just before it."""
    return subprocess.Popen(
        [sys.executable, "-m", "pruner_zero", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr once it has ended."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


# What the server of forks imports before it forks: all that a command on a tiny model imports.
PRELOADED = [
    "pruner_zero.cli.app",
    "pruner_zero.measuring.comparing",
    "pruner_zero.evolution.run",
    "pruner_zero.recovery.recover",
    "transformers.models.llama.modeling_llama",
]


class Forked:
    """The command line in a process that was forked from one which has torch loaded already.

    It starts in milliseconds, so that a test can afford many kills. `out` and `err` are files.
    script: a Python file to run in place of the command line.
    """

    context = get_context("forkserver")

    def __init__(self, *arguments: object, log: Path, script: Path | None = None) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        words = [*map(str, arguments)]
        self.process = self.context.Process(
            target=_main, args=(words, str(self.out), str(self.err), script)
        )
        self.process.start()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.join()

    def end(self, seconds: float = 120) -> int:
        """Wait for its end; the exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still running"
        return self.process.exitcode


def _main(arguments: list[str], out: str, err: str, script: Path | None) -> None:
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["pruner-zero", *arguments]
    if script:
        # As Python does for a script that is run by its path.
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        return
    from pruner_zero.cli.app import main
    from pruner_zero.training import train

    # A recovery that is killed after a few steps must have a checkpoint.
    train.CHECKPOINT_SECONDS = 0.0
    main()
