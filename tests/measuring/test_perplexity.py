"""Perplexity is the plain mean over windows, per token, with logits in fp32."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pruner_zero import evaluate
from pruner_zero.measuring.perplexity import Perplexity
from tests.conftest import save_tiny
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@torch.no_grad()
def plain(model: torch.nn.Module, text: str, seqlen: int, windows: int | None = None) -> float:
    """Tokens in rows, the mean loss of each row's next tokens, the exponential of their mean."""
    ids = torch.tensor(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // seqlen * seqlen].reshape(-1, seqlen)[:windows]
    logits = model(rows).logits.float()[:, :-1]
    loss = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
    return math.exp(loss)


@pytest.mark.parametrize(
    ("architecture", "windows"), [("llama", 20), ("gpt2", 20), ("mixtral", 20), ("llama", None)]
)
def test_it_equals_the_plain_computation(
    architecture: str, windows: int | None, prose: str
) -> None:
    model = tiny_model(architecture)
    result = evaluate(model, [prose], seqlen=60, windows=windows, tokenizer=tiny_tokenizer())
    assert result.perplexity == pytest.approx(plain(model, prose, 60, windows), rel=1e-5)
    assert len(result.losses) == (windows or len(prose.encode()) // 60)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_bfloat16_weights_are_judged_in_fp32(prose: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "llama")
    exact = evaluate(folder, [prose], seqlen=32, windows=8)
    narrow = evaluate(folder, [prose], seqlen=32, windows=8, dtype="bfloat16")
    assert narrow.perplexity == pytest.approx(exact.perplexity, rel=0.02)
    assert narrow.losses != exact.losses
    model = tiny_model("llama").to(torch.bfloat16)
    assert narrow.perplexity == pytest.approx(plain(model, prose, 32, 8), rel=5e-3)


@pytest.mark.fault("a weight is NaN or infinite")
def test_nan_in_an_embedding_that_the_text_does_not_use_is_refused(prose: str) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = torch.nan
    assert "embed_tokens.weight has" in refusal(
        lambda: evaluate(model, [prose], seqlen=16, windows=2, tokenizer=tiny_tokenizer())
    )


def test_a_hopeless_model_is_still_json() -> None:
    hopeless = Perplexity((800.0, 900.0), {})
    assert hopeless.perplexity == math.inf
    assert hopeless.loss == 850
    assert json.loads(json.dumps(hopeless.to_json(), allow_nan=False))["perplexity"] is None
    assert repr(hopeless).startswith("perplexity inf per token on 2 windows of a text")
    assert hopeless.to_rows() == [{"perplexity": math.inf, "loss": 850.0}]


def test_bits_per_byte_count_the_text_of_the_predicted_tokens(prose: str) -> None:
    """The first token of each window is not predicted, and its bytes do not count."""
    text, tokenizer = "Grüße an 日本. " + prose, tiny_tokenizer()
    result = evaluate(tiny_model("llama"), [text], seqlen=16, windows=3, tokenizer=tokenizer)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:48]
    spelled = [tokenizer.decode(tokens[at + 1 : at + 16]) for at in (0, 16, 32)]
    assert result.text["text_bytes"] == sum(len(part.encode()) for part in spelled)
    assert result.bits_per_byte is not None
    bits = result.loss * 3 * 15 / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / result.text["text_bytes"])
