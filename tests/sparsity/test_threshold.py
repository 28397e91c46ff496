"""One threshold for matrices that come one after the other is one stable sort of all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import LazyTensors
from pruner_zero.sparsity.threshold import global_threshold
from tests.sparsity.reference import keep_matrices

few_values = st.sampled_from([-1.0, -0.0, 0.0, 1e-30, 0.5, 0.5000001, 3.0])
any_value = st.floats(-1e6, 1e6, width=32)


@st.composite
def several(draw: st.DrawFn) -> list[Tensor]:
    value = draw(st.sampled_from([few_values, any_value]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
    return [
        torch.tensor(draw(st.lists(value, min_size=rows * n, max_size=rows * n))).view(rows, n)
        for rows, n in shapes
    ]


@given(several(), st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.9, 0.99]))
def test_masks_are_those_of_one_stable_sort(matrices: list[Tensor], sparsity: float) -> None:
    named = {f"m{index}": matrix for index, matrix in enumerate(matrices)}
    threshold = global_threshold(named, sparsity)
    for (name, matrix), expected in zip(
        named.items(), keep_matrices([m + 0.0 for m in matrices], sparsity), strict=True
    ):
        assert torch.equal(threshold.mask(matrix, name), expected)


def test_each_mask_needs_no_other() -> None:
    # A resumed run asks for the last ones only.
    named = {f"m{index}": torch.ones(2, 3) for index in range(3)}
    threshold = global_threshold(named, 0.5)
    pruned = [int((~threshold.mask(named[name], name)).sum()) for name in ("m2", "m1", "m0")]
    assert pruned == [0, 3, 6]


@pytest.mark.parametrize(("ties", "passes"), [(False, 2), (True, 3)])
def test_scores_are_computed_a_third_time_only_where_ties_are_split(
    ties: bool, passes: int
) -> None:
    scores = torch.arange(10.0)[None]
    if ties:
        scores[0, 4:6] = 4.0
    computed = []

    def compute(name: str) -> Tensor:
        computed.append(name)
        return scores

    stream = LazyTensors(["m"], compute)
    assert int(global_threshold(stream, 0.5).mask(scores, "m").sum()) == 5
    assert len(computed) == passes


def test_a_score_that_is_not_finite_is_named() -> None:
    scores = {"fine": torch.ones(2, 2), "broken": torch.full((2, 2), torch.nan)}
    with pytest.raises(PrunerZeroError, match="broken"):
        global_threshold(scores, 0.5)
