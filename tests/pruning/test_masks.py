"""Scores of a whole model in bounded memory: what is not held is computed again, alike."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning import masks as masks_module
from pruner_zero.pruning.masks import choose_masks, score_matrix
from pruner_zero.pruning.prune import prune
from pruner_zero.sparsity.pattern import Lazy
from pruner_zero.sparsity.selection import Unstructured
from tests.pruning.conftest import Prune, language_model
from tests.pruning.live import Live
from tests.sparsity.reference import keep_matrices

HALF = Unstructured(0.5, "global")


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8),
    st.integers(0, 200),
    st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.9]),
    st.integers(1, 6),
    st.data(),
)
def test_masks_are_those_of_scores_that_are_all_held(
    shapes: list[tuple[int, int]], hold: int, sparsity: float, values: int, data: st.DataObject
) -> None:
    kinds = st.integers(-values, values).map(float)
    matrices = {
        f"m{index}": torch.tensor(data.draw(st.lists(kinds, min_size=r * c, max_size=r * c))).view(
            r, c
        )
        for index, (r, c) in enumerate(shapes)
    }
    live = Live()
    scores = Lazy(lambda: matrices, lambda name: live(matrices[name]), hold)
    masks = choose_masks(Unstructured(sparsity, "global"), matrices, scores, matrices.__getitem__)
    expected = keep_matrices(list(matrices.values()), sparsity)
    assert all(torch.equal(*pair) for pair in zip(masks.values(), expected, strict=True))
    assert live.most <= hold + 2 * live.largest


@pytest.mark.parametrize(("hold", "computed"), [(0, 3 * 5), (100, 5 + 2 * 2), (1000, 5)])
def test_scores_that_are_held_are_computed_once(hold: int, computed: int) -> None:
    # Each of five matrices has 32 bytes; two passes for the threshold and one for the masks.
    matrices = {f"m{index}": torch.randn(2, 4) for index in range(5)}
    live = Live()
    scores = Lazy(lambda: matrices, lambda name: live(matrices[name]), hold)
    for _ in choose_masks(HALF, matrices, scores, matrices.__getitem__).values():
        assert live.bytes <= hold + 32
    assert live.computed == computed


def test_matrices_that_calibration_never_reached_have_no_scores() -> None:
    scores = Lazy(lambda: "abc", lambda name: None if name == "b" else torch.ones(1), 0)
    assert list(scores) == ["a", "c"]
    assert len(scores) == 2
    assert "b" not in scores
    with pytest.raises(KeyError):
        scores["b"]


def test_a_key_error_of_the_score_is_no_unreached_matrix() -> None:
    statistics: dict[str, Tensor] = {}
    scores = Lazy(lambda: "ab", statistics.__getitem__)
    with pytest.raises(KeyError):
        choose_masks(HALF, "ab", scores, lambda name: torch.ones(2, 2))["a"]


@pytest.mark.parametrize("dense_inputs", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("method", ["wanda@global+obs", "W * (O * X)^0.73@global"])
def test_a_model_whose_scores_do_not_fit_is_pruned_alike(
    method: str,
    architecture: str,
    dense_inputs: bool,
    pruned_by: Prune,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, expected = language_model(architecture), language_model(architecture)
    records = pruned_by(expected, method, dense_inputs=dense_inputs).records
    live = Live()
    monkeypatch.setattr("pruner_zero.pruning.masks.HELD_BYTES", 0)
    monkeypatch.setattr(masks_module, "score_matrix", live.around(score_matrix))
    assert pruned_by(ours, method, dense_inputs=dense_inputs).records == records
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], tensor), name
    every = sum(matrix.weight.numel() * 4 for matrix in find_matrices(ours.model))
    assert live.most <= 2 * live.largest < every / 3


def test_units_are_chosen_alike_where_the_scores_of_a_block_do_not_fit(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pruned() -> dict[str, Tensor]:
        result = prune(
            language_model("llama"),
            "wanda",
            calibration=[prose],
            structure="channels",
            sparsity=0.34,
            windows=3,
            seqlen=24,
            cache=tmp_path,
        )
        return dict(result.language_model.model.state_dict())

    expected, live = pruned(), Live()
    monkeypatch.setattr("pruner_zero.pruning.masks.HELD_BYTES", 0)
    monkeypatch.setattr(masks_module, "score_matrix", live.around(score_matrix))
    ours = pruned()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    # Gate, up and down of a block have as many scores each.
    assert 0 < live.most <= 2 * live.largest
