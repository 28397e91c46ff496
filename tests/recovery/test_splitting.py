"""Windows: held-out text is never learned, every epoch covers the text, runs go on anywhere."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.recovery.splitting import Split, split_windows
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import Windows
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer

SEQLEN = 16


def numbered(tokens: int, seqlen: int) -> Windows:
    """Windows of a stream in which each token is its own position."""
    stream = torch.arange(tokens // seqlen * seqlen).view(-1, seqlen)
    return Windows(stream, "numbers", "", "", tokens, "consecutive")


def take(
    count: int, *texts: Windows, shares: Sequence[float] = (1,), seed: int = 0, skipped: int = 0
) -> list[Tensor]:
    """The first windows to train on, after those that are skipped."""
    order = Split(texts, shares, texts[0]).in_training_order(seed, skipped)
    return list(islice(order, count))


def test_the_end_of_the_text_is_held_out_and_not_learned(prose: str) -> None:
    training, validation = split_windows(Corpus("prose", prose), tiny_tokenizer(), SEQLEN, 5)
    decode = tiny_tokenizer().decode
    learned, held_out = (decode(part.tokens.flatten()) for part in (training, validation))
    cut = round(len(prose) * 0.9)
    assert prose[:cut].startswith(learned)
    assert len(learned) > cut - SEQLEN
    assert prose[cut:].startswith(held_out)
    assert len(validation) == 5
    assert training.describe()["text"] == "prose (first nine tenths)"
    assert validation.describe()["text"] == "prose (last tenth)"


def test_fewer_windows_are_held_out_where_the_tenth_has_no_more(prose: str) -> None:
    _, validation = split_windows(Corpus("prose", prose), tiny_tokenizer(), SEQLEN, 10**6)
    assert len(validation) == (len(prose) - round(len(prose) * 0.9)) // SEQLEN


def test_a_text_too_short_for_a_held_out_window_is_refused() -> None:
    corpus = Corpus("short", "a" * 100)
    line = refusal(lambda: split_windows(corpus, tiny_tokenizer(), SEQLEN, 5))
    assert "short (last tenth) has 10 tokens, fewer than one window of 16" in line


@given(st.integers(1, 200), st.integers(2, 20), st.integers(0, 2**63 - 1))
def test_an_epoch_has_every_token_once_but_for_the_ends(
    tokens: int, seqlen: int, seed: int
) -> None:
    windows = numbered(tokens + seqlen, seqlen)
    stream = windows.tokens.numel()
    counts: Counter[int] = Counter()
    for window in take(3 * len(windows), windows, seed=seed):
        assert window.shape == (1, seqlen)
        assert torch.equal(window[0], torch.arange(int(window[0, 0]), int(window[0, 0]) + seqlen))
        if any(counts[int(token)] for token in window[0]):
            break
        counts.update(window.flatten().tolist())
    # A new epoch repeats a token only once all but less than a window at each end are seen.
    assert len(counts) > stream - 2 * seqlen


def test_windows_at_another_offset_begin_as_all_do() -> None:
    """Their other tokens are a piece of the stream without what windows begin with."""
    tokens = torch.cat([torch.full((12, 1), -1), torch.arange(84).view(12, 7)], 1)
    windows = Windows(tokens, "numbers", "", "", 84, "consecutive", start=(-1,))
    drawn = torch.cat(take(11, windows))
    assert (drawn[:, 0] == -1).all()
    assert (drawn[:, 1:].diff(dim=1) == 1).all()
    assert (drawn[:, 1] % 7).any()


def test_the_seed_decides_the_order_which_goes_on_from_any_place() -> None:
    windows = numbered(400, 8)
    whole, same, other = (torch.cat(take(80, windows, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(whole, same)
    assert not torch.equal(whole, other)
    for skipped in (0, 1, 49, 50, 79):
        rest = torch.cat(take(80 - skipped, windows, skipped=skipped))
        assert torch.equal(whole[skipped:], rest)


@pytest.mark.parametrize("tokens", [8, 15, 16])
def test_a_text_of_one_or_two_windows_serves(tokens: int) -> None:
    assert {window.shape for window in take(9, numbered(tokens, 8))} == {(1, 8)}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 40), st.integers(1, 40))
def test_texts_take_turns_by_their_shares(shares: list[int], skipped: int, count: int) -> None:
    texts = [
        Windows(torch.full((4, 8), text), str(text), "", "", 32, "consecutive")
        for text in range(len(shares))
    ]
    drawn = [int(window[0, 0]) for window in take(skipped + count, *texts, shares=shares)]
    for length in range(1, len(drawn) + 1):
        for text, share in enumerate(shares):
            wanted = length * share / sum(shares)
            # D'Hondt's method never gives less than the rounded part.
            assert drawn[:length].count(text) >= int(wanted)
    resumed = take(count, *texts, shares=shares, skipped=skipped)
    assert drawn[skipped:] == [int(window[0, 0]) for window in resumed]
