"""Divergence and agreement of two models' predictions."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import next_token as loss
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.predictions import compare_logits, compare_predictions, differing_tokens
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows


def plain(logits: Tensor, dense: Tensor) -> tuple[float, bool]:
    """KL and agreement at one position, from the probabilities in float64, token by token."""
    p = [math.exp(value) for value in logits.double().tolist()]
    t = [math.exp(value) for value in dense.double().tolist()]
    terms = [b / sum(t) * math.log((b / sum(t)) / (a / sum(p))) for a, b in zip(p, t, strict=True)]
    return sum(terms), p.index(max(p)) == t.index(max(t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 70, 2**22])
def test_logits_are_compared_as_their_definition_says(dtype: torch.dtype, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = (3 * torch.randn(20, 33, generator=generator)).to(dtype)
    logits = (dense + torch.randn(20, 33, generator=generator)).to(dtype)
    before = logits.clone(), dense.clone()
    with patch.object(loss, "LOGITS_AT_ONCE", chunk):
        nats, agreed = compare_logits(logits, dense)
    expected = [plain(*pair) for pair in zip(logits, dense, strict=True)]
    assert nats.dtype == torch.float32
    assert nats.tolist() == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert agreed.tolist() == [same for _, same in expected]
    assert 0 < agreed.sum() < 20
    assert torch.equal(logits, before[0])
    assert torch.equal(dense, before[1])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_models_are_compared_window_by_window_at_all_next_tokens(batch_size: int) -> None:
    model, dense, windows = tiny_model("llama", 1), tiny_model("llama"), tiny_windows()
    result = compare_predictions(model, dense, windows, batch_size)
    with torch.no_grad():
        logits, wanted = (each(windows).logits[:, :-1] for each in (model, dense))
    pairs = [
        [plain(*position) for position in zip(*window, strict=True)]
        for window in zip(logits, wanted, strict=True)
    ]
    nats = [sum(value for value, _ in window) / len(window) for window in pairs]
    agreed = [sum(same for _, same in window) / len(window) for window in pairs]
    assert result.nats == pytest.approx(nats, rel=1e-4)
    assert result.agreed == pytest.approx(agreed)
    assert result.divergence == pytest.approx(sum(nats) / 3, rel=1e-4)
    assert result.agreement == pytest.approx(sum(agreed) / 3)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = tiny_model("gemma2").bfloat16()
    result = compare_predictions(model, model, tiny_windows())
    assert result.nats == (0.0, 0.0, 0.0)
    assert result.agreed == (1.0, 1.0, 1.0)


@pytest.mark.fault("a weight is NaN or infinite")
def test_a_divergence_that_is_not_finite_is_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(PrunerZeroError, match="divergence is not finite"):
        compare_predictions(model, deepcopy(model), tiny_windows())


def numbered(change: Callable[[dict[str, int]], object], rows: int = 257) -> LanguageModel:
    """A tiny model of `rows` tokens, whose numbers `change` has changed."""
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    change(tokenizer["model"]["vocab"])
    model = tiny_model("llama")
    model.resize_token_embeddings(rows)
    read = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)))
    return LanguageModel(model, read, "other")


def test_tokens_that_differ_are_named_though_there_are_as_many() -> None:
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "this")
    swapped = numbered(lambda tokens: tokens.update({"a": tokens["b"], "b": tokens["a"]}))
    number = tiny_tokenizer().get_vocab()["a"]
    assert differing_tokens(model, swapped) == f"number {number} is 'b' instead of 'a'"
    assert differing_tokens(model, numbered(lambda _: None, rows=260)) == "260 instead of 257"
    # A tokenizer may leave numbers of the model without a token, or fill them up.
    assert differing_tokens(model, numbered(lambda tokens: tokens.pop("a"))) is None
