"""One entry makes a new statistic: every pass collects it, and the store keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.statistics import STATISTICS, InputStatistic, WeightGradientStatistic
from pruner_zero.metric.expression import TERMINALS, collected_for
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import random_windows
from tests.calibration.reference import plain_gradients, plain_inputs
from tests.conftest import save_sharded
from tests.tiny import FOX, tiny_tokenizer
from tests.tiny_models import tiny_model


def add_moments(total: Tensor, tokens: Tensor) -> Tensor:
    return total.add_(torch.stack([torch.ones_like(tokens), tokens, tokens.square()]).sum(1))


def deviation(total: Tensor, windows: int) -> Tensor:
    count, mean, square = total[0].clamp(min=1), total[1], total[2]
    return (square / count - (mean / count).square()).clamp(min=0).sqrt()[None]


NEW = {
    "deviation": InputStatistic(lambda width: (3, width), add_moments, deviation),
    "largest": WeightGradientStatistic(
        lambda total, gradient: torch.maximum(total, gradient.abs(), out=total),
        lambda total: total,
    ),
}


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_new_statistic_is_collected_in_memory_and_from_disk(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pruner_zero.calibration.statistics.STATISTICS", {**STATISTICS, **NEW})
    save_sharded(tmp_path / "model", architecture)
    model = tiny_model(architecture, blocks=3)
    windows = random_windows(Corpus("fox", FOX), tiny_tokenizer(), 3, 11, 0)
    stores = []
    for load in (load_model, load_offloaded):
        language_model = load(tmp_path / "model")
        store = open_store(language_model, windows, folder=tmp_path / load.__name__)
        calibrate(language_model, windows, [*NEW, "G"], store)
        stores.append(store)
    inputs = plain_inputs(model, windows.tokens)
    gradients = [plain_gradients(model, window[None]) for window in windows.tokens]
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
    for matrix in find_matrices(model):
        for kind in (*NEW, "G"):
            left, right = (store.read(kind, matrix.block)[matrix.name] for store in stores)
            assert torch.equal(left, right)
        deviation, largest = (stores[0].read(kind, matrix.block)[matrix.name] for kind in NEW)
        expected = torch.zeros_like(deviation)
        if rows := [part for part in inputs.rows.get(matrix.name, []) if len(part)]:
            expected = torch.cat(rows).std(0, correction=0, keepdim=True).float()
        torch.testing.assert_close(deviation, expected, **close)
        stacked = torch.stack([of_window[matrix.parameter_name] for of_window in gradients])
        expected = stacked.amax(0).float()
        expected = expected if matrix.expert is None else expected[matrix.expert]
        torch.testing.assert_close(largest, expected, **close)


def test_every_terminal_is_of_the_weight_or_of_a_statistic_that_is_collected() -> None:
    of_units = {"influence", "reap", "matrix_price", "block_price"}
    assert collected_for(TERMINALS) == set(STATISTICS) - {"tokens", *of_units}
    assert collected_for(["W", "S"]) == set()
    assert collected_for(["W", "X", "D"]) == {"X", "gram"}
    assert collected_for(["W", "X", "O"]) == {"X", "O"}
