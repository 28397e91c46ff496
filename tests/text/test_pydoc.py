"""`builtin:pydoc`: three parts that share no text, the same ones every time."""

from itertools import combinations
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.pydoc import passages_of, split_topics
from pruner_zero.text.source import ROLES
from tests.text.refusals import line


def test_the_parts_have_their_shares_of_all_topics() -> None:
    whole = load_corpus("builtin:pydoc/all").text
    assert all(topic in whole for topic in topics.values())
    for role, share in zip(ROLES, (0.5, 0.25, 0.25), strict=True):
        corpus = load_corpus("builtin:pydoc", role)
        assert corpus == load_corpus(f"builtin:pydoc/{role}", "calibration")
        part = corpus.text
        assert len(part) / len(whole) == pytest.approx(share, abs=0.03)


def test_no_passage_is_in_two_parts() -> None:
    texts = [load_corpus(f"builtin:pydoc/{role}").text for role in ROLES]
    for first, second in combinations(texts, 2):
        assert passages_of(first).isdisjoint(passages_of(second))


@settings(max_examples=20, deadline=None)
@example(dict(topics))
@given(st.dictionaries(st.text(max_size=4), st.text(max_size=300)))
def test_any_topics_are_split_completely_whatever_their_order(texts: dict[str, str]) -> None:
    parts = split_topics(texts)
    assert sorted(name for part in parts.values() for name in part) == sorted(texts)
    assert split_topics(dict(reversed(texts.items()))) == parts


def test_a_python_without_pydoc_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    assert "needs pydoc_data, which this Python lacks" in line("builtin:pydoc")
