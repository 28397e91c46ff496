"""A candidate's masks take bounded memory, whatever the model."""

import pytest
import torch

from pruner_zero.evolution import evaluator
from pruner_zero.metric.grammar import parse
from pruner_zero.pruning.masks import reached_score
from tests.evolution.conftest import Build
from tests.pruning.live import Live


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
