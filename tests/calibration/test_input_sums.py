"""Sums over windows add up, however the windows are shared out."""

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruner_zero.calibration.input_sums import InputSums
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.models import Matrix, find_matrices

WIDTH, OUT = 3, 2


class Block(nn.Module):
    """Two maps that share their input, and one that only even windows reach."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.rare = (nn.Linear(WIDTH, OUT) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        self.q(hidden)
        self.k(hidden)
        if hidden[0, 0, 0] % 2 == 0:
            self.rare(hidden + 1)
        return hidden


def matrices_of(block: nn.Module) -> list[Matrix]:
    return find_matrices(nn.Sequential(nn.ModuleList([block])))


def sums_of(windows: list[Tensor]) -> InputSums:
    block = Block()
    nothing: Any = ((), {})
    return collect_inputs(block, matrices_of(block), windows, [nothing] * len(windows), gram=True)[
        0
    ]


# Sums of small whole numbers are exact, in any order.
windows = st.lists(
    st.lists(st.integers(-9, 9), min_size=2 * WIDTH, max_size=2 * WIDTH).map(
        lambda values: torch.tensor(values, dtype=torch.float32).view(1, 2, WIDTH)
    ),
    min_size=1,
    max_size=6,
)


@given(windows, st.lists(st.integers(0, 6), max_size=3))
def test_sums_of_shares_add_up_to_those_of_all_windows(
    given: list[Tensor], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(given)) for cut in cuts), len(given)]
    total = InputSums(gram=True)
    for start, end in pairwise(edges):
        total = total.plus(sums_of(given[start:end]))
    matrices = matrices_of(Block())
    found = total.statistics(matrices, len(given))
    expected = sums_of(given).statistics(matrices, len(given))
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.equal(found[name].X, one.X)
        gram = found[name].gram
        assert one.gram is not None
        assert gram is not None
        assert torch.equal(gram, one.gram)


def test_what_matrices_share_they_share_in_the_sum() -> None:
    even, odd = torch.zeros(1, 2, WIDTH), torch.ones(1, 2, WIDTH)
    total = InputSums(gram=True).plus(sums_of([odd])).plus(sums_of([even, odd]))
    q, k, rare = total.statistics(matrices_of(Block()), 3).values()
    assert q.gram is k.gram
    assert q.X is k.X
    assert rare.gram is not q.gram


def test_sums_that_only_may_be_read_are_left_as_they_are() -> None:
    part = sums_of([torch.ones(1, 2, WIDTH)])
    before = {name: gram.clone() for name, gram in part.grams.items()}
    InputSums(gram=True).plus(part).plus(part).statistics(matrices_of(Block()), 2)
    assert all(torch.equal(part.grams[name], gram) for name, gram in before.items())
