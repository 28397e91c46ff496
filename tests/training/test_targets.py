"""The dense model's predictions, and the divergence from them, against plain formulas."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import run_blocks
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.next_token import in_float32
from pruner_zero.offload.model import load_offloaded
from pruner_zero.text.translation import Translation
from pruner_zero.training import targets as module
from pruner_zero.training.dense_targets import write_targets
from pruner_zero.training.targets import Target, divergence, logits_in_chunks, target_of
from tests.conftest import save_sharded
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows

MOST = 20


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens kept apart, few logits computed and compared at a time, all in float32."""
    monkeypatch.setattr(module, "KEPT", MOST)
    monkeypatch.setattr(module, "LOGITS", 5 * 256)
    monkeypatch.setattr(module, "_IN_CACHE", 3 * 60)
    monkeypatch.setattr("pruner_zero.models.next_token.has_fast_bfloat16", lambda _: False)


def plain_divergence(logits: Tensor, p: Tensor) -> Tensor:
    """KL from p (positions, vocabulary), its least probable tokens taken together as one."""
    order = p.argsort(-1, descending=True)
    p, q = p.gather(-1, order), logits.softmax(-1).gather(-1, order)
    p, q = (torch.cat([x[:, :MOST], x[:, MOST:].sum(-1, keepdim=True)], -1) for x in (p, q))
    return (p * (p / q).log()).sum()


def test_the_divergence_and_its_gradient_are_those_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    wanted = (2 * torch.randn(7, 60, generator=generator)).softmax(-1)
    logits = (3 * torch.randn(7, 60, generator=generator)).requires_grad_()
    probable, tokens = wanted.topk(MOST)
    rest = 1 - probable.sum(-1)
    loss, gradient = divergence(logits, Target(tokens.int(), probable.log(), rest.log()))
    plain = plain_divergence(logits, wanted)
    plain.backward()
    assert logits.grad is not None
    torch.testing.assert_close(loss, plain.detach())
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-6)


def test_a_model_does_not_diverge_from_itself_but_for_the_rounding_of_its_predictions() -> None:
    logits = 5 * torch.randn(9, 60, generator=torch.Generator().manual_seed(1))
    p, tokens = logits.softmax(-1).topk(MOST)
    target = Target(tokens.int(), p.log().half(), (1 - p.sum(-1)).log())
    loss, gradient = divergence(logits, target)
    assert abs(float(loss)) / 9 < 2e-3
    assert float(gradient.abs().max()) < 2e-3


def test_what_is_never_predicted_gives_a_finite_loss() -> None:
    logits = torch.full((1, 60), -torch.inf)
    logits[0, :30] = torch.arange(30.0)
    logits[0, :5] = -1e4
    tokens, log_p, log_rest = module._most_probable(logits)
    loss, gradient = divergence(torch.randn(1, 60), Target(tokens, log_p.half(), log_rest))
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
def test_logits_in_chunks_are_those_of_the_model(architecture: str) -> None:
    """Also where a model scales its logits after the head."""
    model, windows = tiny_model(architecture), tiny_windows(3, 16)
    wanted = model(windows).logits[:, :-1].flatten(0, 1)
    hidden, as_tuple = run_blocks(model, windows)
    chunks = list(logits_in_chunks(model, windows, hidden, as_tuple))
    assert len(chunks) > 3
    for positions, inputs, logits in chunks:
        torch.testing.assert_close(logits, wanted[positions])
        assert inputs.requires_grad


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_targets_are_the_most_probable_tokens_in_memory_in_a_file_and_of_a_model_on_disk(
    architecture: str, tmp_path: Path
) -> None:
    folder, windows = save_sharded(tmp_path / "model", architecture), tiny_windows(4, 16)
    dense, on_disk = load_model(folder), load_offloaded(folder)
    journals = [Journal(tmp_path / name, {}) for name in ("a", "b")]
    kept = write_targets(dense, windows, [1, 3])
    filed = write_targets(dense, windows, [1, 3], journals[0])
    offloaded = write_targets(on_disk, windows, [1, 3], journals[1])
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 1
    again = write_targets(on_disk, windows * 0, [1, 3], Journal(tmp_path / "b", {}))
    with torch.no_grad(), in_float32(dense.model):
        p = dense.model(windows[[3, 1]]).logits[:, :-1].flatten(0, 1).softmax(-1)
    probable, tokens = p.topk(MOST)
    for targets in (kept, filed, offloaded, again):
        target = targets.of([3, 1])
        assert torch.equal(target.tokens.long(), tokens)
        assert target.log_p.dtype == torch.float16
        torch.testing.assert_close(target.log_p.float(), probable.log(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(target.log_rest, (1 - probable.sum(-1)).log())
        part = target.part(slice(2, 5))
        assert torch.equal(part.log_rest, target.log_rest[2:5])


def test_of_a_model_with_fewer_tokens_the_first_piece_has_the_probability_of_all_its_tokens() -> (
    None
):
    """After a token, and within one, its next piece alone; against the plain sums."""
    dense = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "dense")
    tokens = tiny_windows(2, 12)
    # The upper half of the tokens goes: an even one has two pieces, an odd one three.
    translation = Translation(
        tuple((n,) if n < 129 else (n - 129, n // 2, 5)[: 2 + n % 2] for n in range(257))
    )
    targets = write_targets(dense, tokens, [0, 1], translation=translation)
    with torch.no_grad(), in_float32(dense.model):
        together = target_of(dense.model, tokens, *run_blocks(dense.model, tokens), translation)
    for one_by_one, at_once in zip(targets.of([0, 1]), together, strict=True):
        torch.testing.assert_close(at_once, one_by_one)
    with torch.no_grad(), in_float32(dense.model):
        p = dense.model(tokens).logits.softmax(-1)
    p = torch.stack(
        [p[..., [pieces[0] == n for pieces in translation.pieces]].sum(-1) for n in range(129)], -1
    )
    generator = torch.Generator().manual_seed(0)
    for number, window in enumerate(tokens.tolist()):
        pieces = [(piece, n) for n, t in enumerate(window) for piece in translation.pieces[t]][:12]
        target = targets.of([number])
        assert len(target.tokens) == 11
        logits = torch.randn(11, 129, generator=generator)
        for place, (_, token) in enumerate(pieces[:-1]):
            following, same = pieces[place + 1][0], pieces[place + 1][1] == token
            part = slice(place, place + 1)
            loss, _ = divergence(logits[part], target.part(part))
            alone = -logits[place].log_softmax(-1)[following]
            wanted = alone if same else plain_divergence(logits[part], p[number, token][None])
            torch.testing.assert_close(loss, wanted, rtol=5e-3, atol=5e-3)
