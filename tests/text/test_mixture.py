"""Windows are divided among texts by their shares, and those of all texts come in turn."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.mixture import Mixture, SelfText, load_mixture, load_text
from pruner_zero.text.token_windows import Windows, mix_windows, random_windows
from tests.tiny import tiny_tokenizer

SHARES = st.lists(st.floats(0, exclude_min=True, allow_infinity=False), min_size=1, max_size=5)


def mixture(*shares: float) -> Mixture:
    return Mixture(tuple(Corpus(f"text {share}", "words") for share in shares), shares)


def words(name: str, count: int) -> Windows:
    return random_windows(Corpus(name, f"{name} " * 20), tiny_tokenizer(), count, 8, seed=0)


def numbered(number: int, count: int) -> Windows:
    return replace(words("a", 1), tokens=torch.full((count, 2), number))


@given(SHARES, st.integers(1, 200))
def test_every_text_gives_its_share_rounded_up_or_down(shares: list[float], windows: int) -> None:
    total = sum(map(Fraction, shares))
    quotas = [Fraction(share) / total * windows for share in shares]
    try:
        counts = mixture(*shares).divide(windows)
    except PrunerZeroError:
        assert min(quotas) < 1
        return
    assert sum(counts) == windows
    assert all(abs(count - quota) < 1 for count, quota in zip(counts, quotas, strict=True))


@pytest.mark.parametrize(
    ("shares", "windows", "expected"),
    [
        ((1,), 24, [24]),
        ((1, 1), 24, [12, 12]),
        ((0.7, 0.3), 24, [17, 7]),
        ((3, 1), 24, [18, 6]),
        ((1, 1, 1), 8, [3, 3, 2]),
        *((shares, 5, [3, 1, 1]) for shares in [(0.5, 0.25, 0.25), (2, 1, 1), (2048, 1024, 1024)]),
    ],
)
def test_the_largest_remainder_gives_one_more_and_the_earlier_of_equals(
    shares: tuple[float, ...], windows: int, expected: list[int]
) -> None:
    assert mixture(*shares).divide(windows) == expected


def test_a_text_of_which_there_would_be_no_window_is_named() -> None:
    told = r"text 0\.1 gets none of 3 windows: choose a larger --windows or"
    with pytest.raises(PrunerZeroError, match=told):
        mixture(1, 0.1).divide(3)


def test_the_windows_that_the_model_writes_are_counted() -> None:
    assert mixture(1, 1).count_self(24) == 0
    assert Mixture((Corpus("a", "words"), SelfText()), (1, 3)).count_self(24) == 18


def test_of_a_text_in_two_mixtures_each_has_a_half() -> None:
    shared, corpus, self_text = Corpus("shared", "abcd"), Corpus("one", "words"), SelfText()
    calibration = Mixture((shared, corpus), (1, 2))
    search = Mixture((self_text, shared), (3, 4))
    first, second = calibration.halves(search)
    assert [text.text for text in first.texts if isinstance(text, Corpus)] == ["ab", "words"]
    assert [text.text for text in second.texts if isinstance(text, Corpus)] == ["cd"]
    assert (first.shares, second.shares) == ((1, 2), (3, 4))
    assert calibration.halves(Mixture((self_text,), (1,)))[0] == calibration


def test_text_that_a_model_writes_takes_prompts_and_scripts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Why?")
    texts = {f"self:{prompts}": 1, "self:documents": 1, Corpus("mine", "words"): 1}
    loaded = load_mixture(texts, scripts="Latin,Greek").texts
    answers = ({"role": "user", "content": "Why?"},)
    assert loaded[:2] == (
        SelfText(f"self:{prompts}", (answers,), ("Latin", "Greek")),
        SelfText("self:documents", (), ("Latin", "Greek")),
    )


def test_one_text_or_a_mapping_from_texts_to_shares_is_loaded() -> None:
    corpus = Corpus("mine", "words")
    assert load_text("self") == SelfText()
    assert load_text("self:chat") == SelfText("self:chat")
    assert load_mixture("self") == Mixture((SelfText(),), (1.0,))
    assert load_mixture(corpus) == Mixture((corpus,), (1.0,))
    assert load_mixture(["one", "two"]) == Mixture((load_text(["one", "two"]),), (1.0,))
    loaded = load_mixture({corpus: 0.5, "self": 3, "builtin:pydoc": 1}, "search")
    assert [text.name for text in loaded.texts] == ["mine", "self", "builtin:pydoc/search"]
    assert loaded.shares == (0.5, 3, 1)


def test_windows_of_two_sources_come_in_turn() -> None:
    a, b = words("a", 4), words("b", 2)
    assert mix_windows([a]) is a
    mixed = mix_windows([a, b])
    expected = [a.tokens[0], b.tokens[0], a.tokens[1], a.tokens[2], b.tokens[1], a.tokens[3]]
    assert torch.equal(mixed.tokens, torch.stack(expected))
    assert mixed.describe() == {
        "text": "a + b",
        "text_sha256": None,
        "joined": "windows of the sources in turn",
        "selection": "mixed",
        "seed": 0,
        "windows": 6,
        "seqlen": 8,
        "tokens": 48,
        "tokens_available": None,
        "tokens_sha256": mixed.sha256,
        "sources": [a.describe(), b.describe()],
    }


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4))
def test_every_beginning_has_about_the_shares_of_the_whole(counts: list[int]) -> None:
    mixed = mix_windows([numbered(index, count) for index, count in enumerate(counts)])
    lengths = torch.arange(1, len(mixed) + 1)
    for index, count in enumerate(counts):
        share = count / len(mixed)
        here = (mixed.tokens[:, 0] == index).cumsum(0)
        assert ((here - lengths * share).abs() <= 0.5 + share * len(counts) / 2 + 1e-5).all()


def test_the_text_behind_windows_is_all_of_a_corpus_and_no_more_than_what_a_model_wrote() -> None:
    corpus = Corpus("long", "one two three four five " * 9)
    drawn = random_windows(corpus, tiny_tokenizer(), 3, 8, seed=0)
    whole = tiny_tokenizer()(corpus.text, add_special_tokens=False)["input_ids"]
    written = Windows(torch.arange(8).view(1, 8), "self", None, "none", None, "sampled")
    mixed = mix_windows([drawn, written])
    for windows in (mixed, replace(mixed, tokens=mixed.tokens[:2])):
        (first, stream), (second, own) = windows.streams()
        assert (first, second) == (0.75, 0.25)
        assert stream.tolist() == whole
        assert own.tolist() == list(range(8))
