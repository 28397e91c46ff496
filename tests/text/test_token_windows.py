"""Windows reproduce the token stream; a seed decides which ones are drawn."""

import json
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text import token_windows as windows
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import consecutive_windows, random_windows, start_of
from tests.text.refusals import refusal
from tests.tiny import FOX, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CORPUS = Corpus("fox", FOX)


def stream(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


@given(st.text(min_size=1).filter(str.strip), st.integers(2, 40))
def test_consecutive_windows_are_the_prefix_of_the_stream(text: str, seqlen: int) -> None:
    text = text.encode(errors="replace").decode()
    tokens = stream(text)
    if len(tokens) < seqlen:
        with pytest.raises(PrunerZeroError, match="fewer than one window"):
            consecutive_windows(Corpus("any", text), TOKENIZER, seqlen)
        return
    cut = consecutive_windows(Corpus("any", text), TOKENIZER, seqlen)
    assert cut.tokens.shape == (len(tokens) // seqlen, seqlen)
    assert cut.tokens.dtype == torch.int64
    assert cut.tokens.flatten().tolist() == tokens[: len(tokens) // seqlen * seqlen]
    assert cut.available == len(tokens)


def test_fewer_windows_are_the_first() -> None:
    every = consecutive_windows(CORPUS, TOKENIZER, 10)
    assert torch.equal(consecutive_windows(CORPUS, TOKENIZER, 10, 3).tokens, every.tokens[:3])
    many = random_windows(CORPUS, TOKENIZER, 12, 16, seed=1)
    assert torch.equal(random_windows(CORPUS, TOKENIZER, 3, 16, seed=1).tokens, many.tokens[:3])


@given(st.integers(1, 20), st.integers(2, 100), st.integers(0, 2**63 - 1))
def test_random_windows_are_pieces_of_the_stream(count: int, seqlen: int, seed: int) -> None:
    drawn = random_windows(CORPUS, TOKENIZER, count, seqlen, seed)
    assert drawn.tokens.shape == (count, seqlen)
    assert drawn.tokens.dtype == torch.int64
    pieces = torch.tensor(stream(FOX)).unfold(0, seqlen, 1)
    for window in drawn.tokens:
        assert (pieces == window).all(dim=1).any()


def test_windows_that_are_apart_hold_no_token_twice() -> None:
    """All of them are in another order than in the text, without the rest of 4 characters."""
    text = bytes(range(33, 127)).decode()
    corpus = Corpus("each byte once", text)
    drawn = random_windows(corpus, TOKENIZER, 9, 10, seed=0, apart=True).tokens
    assert drawn.flatten().unique().tolist() == sorted(stream(text[:90]))
    assert drawn.flatten().tolist() != stream(text[:90])
    line = refusal(lambda: random_windows(corpus, TOKENIZER, 10, 10, seed=0, apart=True))
    assert "which hold 9 windows of 10 and not 10" in line
    assert "a smaller --search-windows, --final-windows or --seqlen" in line


def test_the_seed_decides() -> None:
    state = torch.get_rng_state()
    first, again, other = (random_windows(CORPUS, TOKENIZER, 4, 16, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.sha256 == again.sha256 != other.sha256


def test_random_windows_read_a_bounded_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "RANDOM_CHARACTERS", 40)
    assert random_windows(CORPUS, TOKENIZER, 4, 16, seed=1).available == 40
    assert consecutive_windows(CORPUS, TOKENIZER, 16).available == len(FOX)


def test_special_tokens_and_warnings_stay_out(caplog: pytest.LogCaptureFixture) -> None:
    assert TOKENIZER.model_max_length < len(FOX)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        cut = consecutive_windows(CORPUS, tiny_tokenizer(), 10)
    finally:
        logger.removeHandler(caplog.handler)
    assert TOKENIZER.bos_token_id not in cut.tokens
    assert not caplog.records


def test_every_window_begins_as_the_tokenizer_begins_a_text() -> None:
    """The other tokens are those of the bare text, and all of them are predicted."""
    tokenizer = tiny_tokenizer(begins=True)
    assert (start_of(tokenizer), start_of(TOKENIZER)) == ((tokenizer.bos_token_id,), ())
    cut = consecutive_windows(CORPUS, tokenizer, 10)
    apart = random_windows(CORPUS, tokenizer, len(cut), 10, seed=0, apart=True)
    drawn = random_windows(CORPUS, tokenizer, 20, 10, seed=1)
    for each in (cut, apart, drawn):
        assert (each.tokens[:, 0] == tokenizer.bos_token_id).all()
        assert each.describe()["joined"] == "one stream as it stands, <s> first"
    text = stream(FOX)[: len(FOX) // 9 * 9]
    assert cut.tokens[:, 1:].flatten().tolist() == text
    assert sorted(apart.tokens[:, 1:].tolist()) == sorted(cut.tokens[:, 1:].tolist())
    bare = random_windows(CORPUS, TOKENIZER, 20, 9, seed=1)
    assert torch.equal(drawn.tokens[:, 1:], bare.tokens)
    assert cut.text_bytes == len(text)
    assert consecutive_windows(CORPUS, TOKENIZER, 10).text_bytes == len(FOX) // 10 * 9


def test_a_tokenizer_that_also_ends_a_text_only_begins_windows() -> None:
    tokenizer = tiny_tokenizer()
    marks = [("<s>", 0), ("a", stream("a")[0])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A a", special_tokens=marks
    )
    assert start_of(tokenizer) == (tokenizer.bos_token_id,)


def test_the_provenance_is_complete_and_json() -> None:
    drawn = random_windows(CORPUS, TOKENIZER, 4, 16, seed=7)
    assert json.loads(json.dumps(drawn.describe())) == {
        "text": "fox",
        "text_sha256": CORPUS.sha256,
        "joined": "one stream as it stands",
        "selection": "random",
        "seed": 7,
        "windows": 4,
        "seqlen": 16,
        "tokens": 64,
        "tokens_available": len(FOX),
        "tokens_sha256": drawn.sha256,
    }
    cut = consecutive_windows(CORPUS, TOKENIZER, 16)
    assert (cut.describe()["selection"], cut.describe()["seed"]) == ("consecutive", None)
    assert len(cut) == len(FOX) // 16


@pytest.mark.parametrize(
    ("windows", "seqlen", "words"),
    [
        (1, 1024, "has 225 tokens, fewer than one window of 1024: choose a longer text or a sm"),
        (227, 25, "and not 227: choose a longer text, or a smaller --windows or --seqlen"),
        (0, 16, "--windows is 0"),
        (1, 1, "--seqlen is 1"),
    ],
)
def test_numbers_that_do_not_fit_the_text_are_refused(
    windows: int, seqlen: int, words: str
) -> None:
    assert words in refusal(lambda: random_windows(CORPUS, TOKENIZER, windows, seqlen, 0))
    assert words in refusal(lambda: consecutive_windows(CORPUS, TOKENIZER, seqlen, windows))


def test_the_most_windows_are_named_and_the_seed_has_bounds() -> None:
    line = refusal(lambda: consecutive_windows(CORPUS, TOKENIZER, 25, 10))
    assert "hold 9 windows of 25 and not 10" in line
    line = refusal(lambda: random_windows(CORPUS, TOKENIZER, 27, 200, 0))
    assert "hold 26 windows of 200 and not 27" in line
    for seed in (-1, 2**63):
        line = refusal(lambda seed=seed: random_windows(CORPUS, TOKENIZER, 1, 16, seed))  # type: ignore[misc]
        assert line.startswith(f"--seed is {seed}")
