"""`recover` where the model is: the same curve, the same zeros, and back again after a stop."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices
from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.recover_result import RecoverResult
from tests.elsewhere import HERE, THERE, elsewhere
from tests.models.test_placement import place_block_after_block
from tests.recovery.conftest import pruned_model
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {
    "steps": 4,
    "seqlen": 16,
    "batch": 2,
    "validation_windows": 2,
    "learning_rate": 1e-2,
}


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch module of the device's name, which computing activations again asks for."""
    monkeypatch.setattr(torch, HERE.type, SimpleNamespace(), raising=False)


def recovered(model: LanguageModel, prose: str, **options: Any) -> RecoverResult:
    return recover(model, text=[prose], **{**SMALL, **options})


def losses(result: RecoverResult) -> list[float]:
    return [point.validation_loss for point in result.curve]


def test_a_model_learns_elsewhere_as_here(prose: str) -> None:
    expected = recovered(pruned_model()[0], prose)
    model = pruned_model()[0]
    with elsewhere():
        model.model.to(HERE)
        result = recovered(model, prose)
    assert losses(result) == pytest.approx(losses(expected), rel=1e-3)
    assert result.sparsity_after == expected.sparsity_after


def test_a_teacher_may_be_on_another_device_than_a_model_on_two(prose: str) -> None:
    teacher = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "dense")
    expected = recovered(pruned_model()[0], prose, teacher=teacher)
    model = pruned_model()[0]
    with elsewhere():
        place_block_after_block(model.model)
        teacher.model.to(THERE)
        result = recovered(model, prose, teacher=teacher)
    assert losses(result) == pytest.approx(losses(expected), rel=1e-3)


def test_a_run_stopped_elsewhere_goes_on_here(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recovered(pruned_model()[0], prose)
    model, output = pruned_model()[0], tmp_path / "out"
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    with elsewhere(), monkeypatch.context() as patch:
        patch.setattr(import_module("pruner_zero.recovery.recover"), "RecoverResult", stop)
        model.model.to(HERE)
        with pytest.raises(StoppedError):
            recovered(model, prose, output=output)
    result = recovered(pruned_model()[0], prose, output=output)
    assert losses(result) == pytest.approx(losses(expected), rel=1e-3)
    for matrix, reference in zip(
        find_matrices(result.language_model.model),
        find_matrices(expected.language_model.model),
        strict=True,
    ):
        torch.testing.assert_close(matrix.weight, reference.weight, rtol=1e-2, atol=1e-3)
