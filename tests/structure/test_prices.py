"""F as a metric: units go by their price."""

import json
from typing import Any

import pytest
import torch

from pruner_zero import prune
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.choices import Structure
from pruner_zero.metric.expression import collected_for
from pruner_zero.metric.metric import Metric
from pruner_zero.models.couplings import find_couplings
from pruner_zero.models.matrices import find_matrices
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import random_windows
from tests.pruning.conftest import language_model
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(("structure", "kept"), [("channels", 32), ("heads", 1)])
def test_the_units_with_the_lowest_prices_go(structure: Structure, kept: int, prose: str) -> None:
    model, dense = language_model("llama"), language_model("llama")
    options: dict[str, Any] = {"windows": 3, "seqlen": 24, "update": "none"}
    share: dict[Structure, dict[str, Any]] = {
        "channels": {"sparsity": 0.34},
        "heads": {"sparsity": 0.5},
    }
    prune(model, "fisher", calibration=[prose], structure=structure, **options, **share[structure])
    windows = random_windows(Corpus("prose", prose), tiny_tokenizer(), 3, 24, 0).tokens
    statistics = collect_gradients(dense.model, find_matrices(dense.model), windows, ["F"])
    for coupling in find_couplings(dense.model, structure):
        prices = statistics[coupling.consumer]["F"].view(coupling.count, -1).sum(1)
        stay = prices.topk(kept).indices.sort().values
        weight = dense.model.get_parameter(f"{coupling.consumer}.weight")
        expected = weight.unflatten(1, (coupling.count, -1))[:, stay].flatten(1)
        assert torch.equal(model.model.get_parameter(f"{coupling.consumer}.weight"), expected)


@pytest.mark.parametrize("text", ["W * F^0.5", "quotient(F, column_share(W)) + X"])
def test_it_is_a_terminal_as_others_are(text: str) -> None:
    metric = Metric.of(text)
    assert Metric.of(json.loads(metric.to_json())) == metric
    assert "F" in collected_for(metric.needs)
