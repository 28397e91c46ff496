"""A token in the pieces of a smaller tokenizer: the same text, and where each token ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.text.translation import Translation
from tests.metric.strategies import lightly
from tests.structure.test_tokens import DENSE, TABLES, cut, texts


@pytest.mark.parametrize("name", TABLES)
@lightly
@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_pieces_of_a_text_decode_to_it(name: str, text: str, share: float, seed: int) -> None:
    _, small = cut(name, share, seed)
    dense = DENSE[name]
    translation = Translation.between(dense, small)
    assert translation is not None
    tokens = dense.encode(text, add_special_tokens=False).ids
    pieces = [piece for token in tokens for piece in translation.pieces[token]]
    assert small.decode(pieces) == dense.decode(tokens)


@pytest.mark.parametrize("name", TABLES)
def test_windows_are_as_long_as_before_and_say_where_tokens_end(name: str) -> None:
    kept, small = cut(name, 0.3)
    translation = Translation.between(DENSE[name], small)
    assert translation is not None
    count, generator = TABLES[name].count, torch.Generator().manual_seed(0)
    tokens = torch.randint(count, (5, 12), generator=generator)
    windows, ends = translation.windows(tokens)
    assert windows.shape == ends.shape == tokens.shape
    assert (ends < 0).any()
    for window, row, places in zip(tokens.tolist(), windows.tolist(), ends.tolist(), strict=True):
        pieces = [(p, n) for n, token in enumerate(window) for p in translation.pieces[token]]
        assert row == [piece for piece, _ in pieces[:12]]
        following = [n for _, n in pieces[1:]] + [12]
        last = [n if after > n else -1 for (_, n), after in zip(pieces, following, strict=True)]
        assert places == last[:12]
    for number in kept:
        assert translation.pieces[number] == (kept.index(number),)


def test_a_tokenizer_with_other_tokens_has_no_translation() -> None:
    assert Translation.between(DENSE["byte level"], DENSE["byte fallback"]) is None
