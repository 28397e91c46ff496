"""Next-token losses of windows, a part of the positions at a time."""

import math

import pytest
import torch
from torch import Tensor

from pruner_zero.models import loss
from pruner_zero.models.loss import next_token_losses
from tests.tiny_models import tiny_model, tiny_windows


@pytest.mark.parametrize("at_once", [1, 300, 2**22])
def test_losses_are_those_of_the_definition(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    model, windows = tiny_model("llama"), tiny_windows()
    with torch.no_grad():
        losses = next_token_losses(model, windows)
        rows = model(windows).logits.double().tolist()
    expected = [
        -sum(
            scores[token] - math.log(sum(map(math.exp, scores)))
            for scores, token in zip(row, window[1:], strict=False)
        )
        / (len(window) - 1)
        for row, window in zip(rows, windows.tolist(), strict=True)
    ]
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_few_logits_are_in_float32_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    in_float32 = Tensor.float
    model, windows = tiny_model("llama").bfloat16(), tiny_windows()
    most = 3 * model.config.vocab_size
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", most)
    monkeypatch.setattr(Tensor, "float", lambda t: sizes.append(t.numel()) or in_float32(t))  # type: ignore[func-returns-value]
    with torch.no_grad():
        next_token_losses(model, windows)
    assert max(sizes) == most
