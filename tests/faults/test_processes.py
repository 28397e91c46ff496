"""Processes that meet, that die and that are left alone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.execution.processes import ProcessExecutor
from tests.execution.worker_suite import Scripted, ended, script
from tests.faults.conftest import Whole
from tests.faults.verbs import Verb, halted, one_line, run
from tests.processes import PRELOADED, Forked


@pytest.mark.fault(
    "a second process on one run folder or one cache entry",
    "it is refused in one line; the first one's result is not touched",
)
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("verb", ["search", "gradients", "recover"], indirect=True)
def test_the_second_is_refused(verb: Verb, whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    first = halted(verb, folder, lines=2)
    try:
        line = one_line(run(*verb.arguments(folder)))
    finally:
        os.kill(first.process.pid or 0, signal.SIGCONT)
    assert "another process is working in" in line
    assert "wait for it or choose another folder" in line
    assert first.end() == 0
    assert verb.result(folder) == whole.result


def held_search(folder: str, log: str) -> None:
    """A search whose worker is busy for ever."""
    Path(log).write_text(str(os.getpid()))
    executor = ProcessExecutor(Scripted(Path(folder)), 1)
    list(executor.map(script("hang")))


@pytest.mark.fault(
    "SIGKILL of a search while its worker is at a candidate",
    "the worker ends too and leaves its memory",
)
@pytest.mark.usefixtures("forks")
def test_workers_end_with_their_search(tmp_path: Path) -> None:
    scripted: Any = Scripted(tmp_path)
    parent = Forked.context.Process(target=held_search, args=(str(tmp_path), str(tmp_path / "pid")))
    parent.start()
    worker = scripted.worker(0)
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.join()
    assert ended(worker)


def test_a_fork_has_the_program_loaded(tmp_path: Path) -> None:
    """Or each of the many would spend seconds on it: a name that is gone is not reported."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint([n for n in {PRELOADED} if n not in sys.modules])\n")
    fork = Forked(log=tmp_path / "log", script=script)
    assert fork.end() == 0, fork.err.read_text()
    assert fork.out.read_text() == "[]\n"
