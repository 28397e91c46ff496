"""A disk that is full at some write: one line, and the same command goes on once there is space."""

import math
import random
from itertools import count
from pathlib import Path

import pytest

from tests.faults.conftest import Tried, Whole
from tests.faults.verbs import VERBS, Verb, one_line, run
from tests.full_disk import full_disk


@pytest.mark.fault(
    "the disk is full at a random write of search, prune, offloaded gradients, recover",
    "one line; with space again, the same command ends with the same bytes",
)
@pytest.mark.parametrize(
    "times", [pytest.param(3, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("verb", VERBS, indirect=True)
def test_a_full_disk_costs_a_line(
    verb: Verb,
    times: int,
    whole: Whole,
    generator: random.Random,
    tried: Tried,
    tmp_path: Path,
) -> None:
    largest = max(file.stat().st_size for file in whole.folder.rglob("*"))
    refused = 0
    for round_ in count():
        folder = tmp_path / str(round_)
        folder.mkdir()
        # The command line's own writes, before the disk is full.
        arguments = verb.arguments(folder)
        while refused < times:
            with full_disk(room=round(math.exp(generator.uniform(3, math.log(largest))))):
                outcome = run(*arguments)
            if outcome.code == 0:
                break
            assert "cannot be written (no space left, free some disk)" in one_line(outcome)
            refused += 1
        else:
            outcome = run(*verb.arguments(folder))
        assert outcome.code == 0, outcome.err
        assert verb.result(folder) == whole.result
        if refused == times:
            break
    tried(refused)
