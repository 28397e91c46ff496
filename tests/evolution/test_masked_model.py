"""The masks of a candidate on the model equal pruning, and are removed afterwards."""

from pathlib import Path

import pytest
import torch

from pruner_zero.choices import Scope
from pruner_zero.evolution import evaluator
from pruner_zero.evolution.evaluator import Task
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.scoring import ScoreError
from pruner_zero.models.matrices import find_matrices
from pruner_zero.models.next_token import next_token_loss
from pruner_zero.pruning.masks import reached_score
from pruner_zero.pruning.prune import prune
from tests.evolution.conftest import Build
from tests.pruning.live import Live
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("scope", ["row", "block", "matrix", "global"])
def test_the_masked_model_is_the_pruned_model(
    build: Build, prose: str, tmp_path: Path, architecture: str, scope: Scope
) -> None:
    masked = build(architecture).masked
    expected = tiny_model(architecture)
    half = prose[: len(prose) // 2]
    prune(
        expected,
        "W * X * G^0.5",
        tokenizer=tiny_tokenizer(),
        calibration=[half],
        sparsity=0.5,
        scope=scope,
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
    )
    wanted = {matrix.name: matrix.weight.clone() for matrix in find_matrices(expected)}
    with masked.masked(parse("W * X * G^0.5"), scope):
        for matrix in masked.matrices:
            assert torch.equal(matrix.weight, wanted[matrix.name]), matrix.name


def test_the_dense_weights_are_back_bit_for_bit_even_after_a_failure(build: Build) -> None:
    masked = build().masked
    before = {matrix.name: matrix.weight.clone() for matrix in masked.matrices}
    with pytest.raises(ScoreError), masked.masked(parse("exp(W / (W - W))"), "row"):
        pass
    with pytest.raises(KeyError), masked.masked(parse("W"), "global"):
        raise KeyError
    for matrix in masked.matrices:
        assert torch.equal(matrix.weight, before[matrix.name])


def test_losses_are_those_of_the_pruned_model_window_by_window(build: Build) -> None:
    judge = build()
    windows = judge.windows
    losses = judge.masked.losses(parse("W * X"), "row", windows)
    with judge.masked.masked(parse("W * X"), "row") as model, torch.no_grad():
        expected = [float(next_token_loss(model, window[None])) for window in windows]
        assert losses == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        dense = [float(next_token_loss(judge.masked.model, window[None])) for window in windows]
    assert losses != pytest.approx(dense, rel=1e-3)


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_candidate_without_a_finite_loss_is_rejected_at_the_first_window(
    loss: float, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = build(search_windows=6)
    losses = iter([4.0, loss])
    monkeypatch.setattr(
        "pruner_zero.evolution.evaluator.next_token_losses",
        lambda *_: torch.tensor([next(losses)]),
    )
    outcome = judge.run(Task(0, "all", "W * X", "row", (4.0,), (4.0,) * 6))
    assert outcome.reason == "the loss of the pruned model is not finite"
    assert outcome.losses == ()


def test_where_bfloat16_is_native_candidates_are_judged_in_it_by_exact_masks(build: Build) -> None:
    exact, fast = build().masked, build(fast=True).masked
    # As transformers loads a model in bfloat16: the frequencies of rotary embeddings are fp32.
    assert {buffer.dtype for buffer in fast.model.buffers()} == {torch.float32}
    expression = parse("W * X * G^0.5")
    with exact.masked(expression, "global"), fast.masked(expression, "global"):
        for exact_matrix, fast_matrix in zip(exact.matrices, fast.matrices, strict=True):
            assert fast_matrix.weight.dtype == torch.bfloat16
            assert torch.equal(fast_matrix.weight, exact_matrix.weight.bfloat16())


def test_the_model_that_is_searched_on_is_never_touched(build: Build) -> None:
    masked = build().masked
    with masked.masked(parse("W"), "row"):
        for matrix in masked.matrices:
            assert masked.dense[matrix.parameter_name].all()
            assert not matrix.weight.all()


def test_a_model_whose_scores_do_not_fit_is_masked_alike(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = build().masked
    metric = parse("W * X")
    expected = list(masked.masks(metric, "global"))
    live = Live()
    monkeypatch.setattr("pruner_zero.pruning.masks.HELD_BYTES", 0)
    monkeypatch.setattr(evaluator, "reached_score", live.around(reached_score))
    for mask, alike in zip(masked.masks(metric, "global"), expected, strict=True):
        assert torch.equal(mask, alike)
    # `live.total` is three times the size of the scores of all fourteen matrices.
    assert live.most <= 2 * live.largest < live.total / 6
