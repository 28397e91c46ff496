"""Next-token losses of windows, a part of the positions at a time."""

import pytest
import torch
from torch import Tensor

from pruner_zero.models import next_token as loss
from pruner_zero.models.next_token import next_token_loss, next_token_losses
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_windows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_losses_are_those_of_the_definition(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = tiny_model(architecture), tiny_windows()
    chances = model(windows).logits.double().log_softmax(-1)[:, :-1]
    expected = -chances.gather(2, windows[:, 1:, None]).mean((1, 2)).float()
    torch.testing.assert_close(next_token_loss(model, windows), expected.mean())
    for at_once in (1, 300, 2**22):
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
        torch.testing.assert_close(next_token_losses(model, windows), expected)


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
