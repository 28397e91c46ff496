"""Memory that the system refuses: the search or the command ends with one line."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruner_zero.cli import options
from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator, Task
from pruner_zero.evolution.row_sample import sample_matrix
from pruner_zero.sparsity.selection import Unstructured
from tests.faults.verbs import one_line, run

# So large that each tensor of this size is asked from the system itself.
WIDTH = 4096


@contextmanager
def short_of_memory(room: int) -> Iterator[None]:
    """The system gives this process no more than `room` bytes from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.fault(
    "a candidate asks for more memory than there is",
    "the search ends with one line; a resumed one judges the candidate again",
)
@pytest.mark.parametrize("expression", ["sqr(W) * X + W", "mms(W) * X", "row_share(W) * X"])
def test_a_candidate(expression: str) -> None:
    weight = torch.rand(WIDTH, WIDTH)
    matrix = sample_matrix("m", 0, weight, {"X": torch.rand(1, WIDTH)}, torch.eye(WIDTH), WIDTH)
    masked: Any = SimpleNamespace(matrices=(), device=CPU, pattern=Unstructured(0.5, "row"))
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    evaluator = Evaluator([matrix], masked, tokens, 1)
    task = Task(0, "reconstruction", expression, "row")
    with (
        short_of_memory(WIDTH * WIDTH * 4),
        pytest.raises(PrunerZeroError, match="out of memory at candidate 0"),
    ):
        evaluator.run(task)
    assert evaluator.run(task).value is not None


@pytest.mark.fault(
    "a command asks for more memory than there is", "one line that says what to make smaller"
)
def test_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def greedy() -> None:
        torch.empty(2**50)

    for work in (greedy, lambda: bytearray(2**50)):
        monkeypatch.setattr(options, "progress", work)
        line = one_line(run("prune", "model", "-o", tmp_path / "out"))
        assert line == "out of memory: choose fewer --windows or --workers, or --offload"
