"""`recover` where the model is: the same curve, the same zeros, and back again after a stop."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.recovery.recover import recover
from pruner_zero.recovery.recover_result import RecoverResult
from tests.elsewhere import HERE, THERE, elsewhere
from tests.models.test_placement import place_block_after_block
from tests.recovery.conftest import Stopping, pruned_model
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {"steps": 4, "seqlen": 16, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch module of the device's name, which computing activations again asks for."""
    monkeypatch.setattr(torch, HERE.type, SimpleNamespace(), raising=False)


def recovered(model: LanguageModel, prose: str, **options: Any) -> RecoverResult:
    return recover(model, text=[prose], **{**SMALL, **options})


@pytest.fixture(scope="module")
def here(prose: str) -> RecoverResult:
    """A recovery on this device."""
    return recovered(pruned_model()[0], prose)


def losses(result: RecoverResult) -> Any:
    return pytest.approx([point.validation_loss for point in result.curve], rel=1e-3)


def test_a_teacher_may_be_on_another_device_than_a_model_on_two(prose: str) -> None:
    teacher = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "dense")
    expected = recovered(pruned_model()[0], prose, teacher=teacher)
    model = pruned_model()[0]
    with elsewhere():
        place_block_after_block(model.model)
        teacher.model.to(THERE)
        result = recovered(model, prose, teacher=teacher)
    assert [point.validation_loss for point in result.curve] == losses(expected)


def test_a_model_learns_elsewhere_as_here_and_a_run_stopped_there_goes_on_here(
    prose: str, tmp_path: Path, here: RecoverResult
) -> None:
    model, output, there = pruned_model()[0], tmp_path / "out", Stopping()
    with elsewhere(), reported_to(there):
        model.model.to(HERE)
        with pytest.raises(KeyboardInterrupt):
            recovered(model, prose, output=output)
    result = recovered(pruned_model()[0], prose, output=output)
    assert [point.validation_loss for point in result.curve] == losses(here)
    assert len([line for line in there.lines if line.startswith("step ")]) == 5
    assert result.sparsity_after == here.sparsity_after
    models = (each.language_model.model for each in (result, here))
    for matrix, reference in zip(*map(find_matrices, models), strict=True):
        torch.testing.assert_close(matrix.weight, reference.weight, rtol=1e-2, atol=1e-3)
