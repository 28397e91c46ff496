"""Killed at random moments and started again, every verb ends with the same bytes."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Tried, Whole
from tests.faults.verbs import VERBS, Verb
from tests.processes import Forked

FEW = [pytest.param(2, id="few"), pytest.param(30, id="many", marks=pytest.mark.slow)]


@pytest.mark.fault(
    "SIGKILL at a random moment of search, prune, offloaded gradients, recover",
    "the same command goes on and ends with the same bytes",
)
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("kills", FEW)
@pytest.mark.parametrize("verb", VERBS, indirect=True)
def test_kills_change_no_byte(
    verb: Verb,
    kills: int,
    whole: Whole,
    generator: random.Random,
    tried: Tried,
    tmp_path: Path,
) -> None:
    begun = time.monotonic()
    (tmp_path / "0").mkdir()
    assert Forked(*verb.arguments(tmp_path / "0"), log=tmp_path / "log").end() == 0
    seconds = time.monotonic() - begun
    killed, round_, reached = 0, 1, set()
    (tmp_path / "1").mkdir()
    while True:
        folder = tmp_path / str(round_)
        process = Forked(*verb.arguments(folder), log=tmp_path / "log")
        if killed < kills:
            time.sleep(generator.uniform(0, seconds))
            process.kill()
        ended = process.end()
        if ended == -signal.SIGKILL:
            killed += 1
            reached.add(verb.progress(folder))
            if not verb.is_done(folder):
                continue
        else:
            assert ended == 0, process.err.read_text()
        assert verb.result(folder) == whole.result
        if killed == kills and ended == 0:
            break
        round_ += 1
        (tmp_path / str(round_)).mkdir()
    tried(killed)
    assert kills < 10 or len(reached) > 3, "the kills all fell on one moment"
