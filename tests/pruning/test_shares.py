"""Shares of zeros by the costs of matrices: dearer matrices lose less, and the sum is as asked."""

from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.pruning.shares import COSTS, equal_margins, shares_by_role
from pruner_zero.sparsity.selection import Unstructured
from tests.tiny_models import tiny_model


def matrices_of(shapes: list[tuple[int, int]]) -> list[Matrix]:
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    return [Matrix(f"m{number}", number, w, f"m{number}") for number, w in enumerate(weights)]


def total(matrices: list[Matrix], zeros: dict[str, int]) -> int:
    return sum(zeros[matrix.name] * matrix.weight.shape[0] for matrix in matrices)


SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(8, 400)), min_size=1, max_size=6)


@given(SHAPES, st.data(), st.sampled_from([0.2, 0.5, 0.6, 0.9]))
def test_the_share_of_all_zeros_is_as_asked(
    shapes: list[tuple[int, int]], data: st.DataObject, sparsity: float
) -> None:
    matrices = matrices_of(shapes)
    costs = {m.name: data.draw(st.floats(0.1, 10)) for m in matrices}
    zeros = equal_margins(matrices, costs, sparsity)
    wanted = sparsity * sum(m.weight.numel() for m in matrices)
    # Every row of one matrix has the same number of zeros, so that the sum goes in such steps.
    assert wanted <= total(matrices, zeros) < wanted + max(rows for rows, _ in shapes)
    limit = (1 + sparsity) / 2
    assert all(0 <= zeros[m.name] <= round(limit * m.weight.shape[1]) for m in matrices)


@given(st.lists(st.floats(0.3, 4), min_size=2, max_size=6))
def test_one_more_zero_costs_the_same_in_all_matrices(values: list[float]) -> None:
    matrices = matrices_of([(3, 20_000)] * len(values))
    costs = {m.name: value for m, value in zip(matrices, values, strict=True)}
    zeros = equal_margins(matrices, costs, 0.5)
    shares = {name: count / 20_000 for name, count in zeros.items()}
    cuts = {name: NormalDist().inv_cdf((1 + share) / 2) for name, share in shares.items()}
    margins = [costs[name] * cuts[name] ** 2 for name in costs if shares[name] < 0.749]
    assert max(margins) == pytest.approx(min(margins), rel=0.01)


def test_equal_costs_give_equal_shares() -> None:
    matrices = matrices_of([(4, 100), (8, 200)])
    assert equal_margins(matrices, dict.fromkeys(["m0", "m1"], 7.0), 0.5) == {"m0": 50, "m1": 100}


def test_values_and_outputs_of_attention_and_the_first_block_keep_more() -> None:
    matrices = find_matrices(tiny_model("llama"))
    zeros = shares_by_role(matrices, 0.5)
    shares = {m.name: zeros[m.name] / m.weight.shape[1] for m in matrices}
    by_role = {m.name.rpartition(".")[2]: shares[m.name] for m in matrices if m.block == 0}
    assert by_role["v_proj"] < by_role["o_proj"] < by_role["up_proj"] < by_role["q_proj"]
    assert set(COSTS) <= set(by_role)


def test_a_pattern_takes_the_zeros_of_each_matrix() -> None:
    pattern = Unstructured(0.5, zeros={"first": 1})
    scores = torch.arange(8.0).view(2, 4)
    masks = pattern.choose({"first": scores, "second": scores})
    assert masks["first"].sum(1).tolist() == [3, 3]
    assert masks["second"].sum(1).tolist() == [2, 2]
    assert str(pattern) == "50% per row, shares by role"
    assert not pattern.stacks
    assert pattern.sweep_columns is None
