"""A metric over O prunes in every order of work, and never pays for G."""

from pathlib import Path
from typing import Any

import pytest

from pruner_zero import prune
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.models.matrices import find_matrices
from pruner_zero.models.saving import save_model
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import random_windows
from tests.calibration.reference import plain_inputs
from tests.masks import keep_mask
from tests.pruning.conftest import language_model
from tests.tiny import tiny_tokenizer

SMALL: dict[str, Any] = {"sparsity": 0.5, "windows": 3, "seqlen": 24}


@pytest.fixture(autouse=True)
def no_weight_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the gradient of a weight is asked for."""

    def fail(*_: object) -> None:
        raise AssertionError("the gradient of a weight was collected")

    monkeypatch.setattr("pruner_zero.calibration.gradients.GradientSums._fold", fail)


@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_it_prunes_by_the_product_of_its_vectors(prose: str, scope: Any, tmp_path: Path) -> None:
    model, dense = language_model("llama"), language_model("llama")
    options = {"calibration": [prose], "cache": tmp_path, **SMALL}
    prune(model, "W * (O * X)^0.73", scope=scope, **options)
    windows = random_windows(Corpus("prose", prose), tiny_tokenizer(), 3, 24, 0).tokens
    inputs, matrices = plain_inputs(dense.model, windows), find_matrices(dense.model)
    statistics = collect_gradients(dense.model, matrices, windows, ["O"])
    for matrix, before in zip(find_matrices(model.model), matrices, strict=True):
        X = inputs.X(matrix.name, matrix.weight.shape[1], 3)
        scores = before.weight.abs() * (statistics[matrix.name]["O"] * X) ** 0.73
        mask = keep_mask(scores, Unstructured(0.5, scope), matrix.name)
        # Sums that round differently may exchange two weights that nearly tie.
        assert ((matrix.weight != 0) == mask).float().mean() > 0.99
        wanda = keep_mask(before.weight.abs() * X**0.73, Unstructured(0.5, scope), matrix.name)
        same = float((mask == wanda).float().mean())
        assert (same > 0.99) == (scope == "row")


@pytest.mark.parametrize("method", ["W * O * X", "W * O * X+obs", "W * O * X@global"])
def test_it_prunes_a_model_on_disk_as_one_in_memory(
    prose: str, method: str, tmp_path: Path
) -> None:
    save_model(language_model("llama"), tmp_path / "model", "30KB")
    results = [
        prune(
            tmp_path / "model",
            method,
            calibration=[prose],
            offload=offload,
            cache=tmp_path / f"cache-{offload}",
            output=tmp_path / f"out-{offload}",
            **SMALL,
        )
        for offload in (False, True)
    ]
    assert results[0].sparsity == 0.5
    kept = [result.to_json()["matrices"] for result in results]
    assert kept[0] == kept[1]
    assert not list(tmp_path.glob("cache-*/*/G*"))
    vectors = [file.stat().st_size for file in tmp_path.glob("cache-*/*/O-*")]
    weights = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert 0 < sum(vectors) / 2 < weights / 10
