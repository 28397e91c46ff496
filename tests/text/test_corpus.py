"""A corpus is one text, its name and its hash, whatever it was read from."""

import hashlib
import os
from pathlib import Path

import pytest

from pruner_zero.text.corpus import Corpus, load_corpus
from tests.text.refusals import line


def test_strings_join_by_a_blank_line() -> None:
    corpus = load_corpus(text for text in ("one", "two"))
    assert (corpus.name, corpus.text) == ("strings", "one\n\ntwo")
    assert corpus.joined == r"2 documents joined by '\n\n'"


def test_the_hash_is_that_of_the_utf8_text() -> None:
    assert load_corpus(["größe"]).sha256 == hashlib.sha256("größe".encode()).hexdigest()


def test_a_corpus_passes_through_and_keeps_its_text_out_of_the_repr() -> None:
    corpus = Corpus("mine", "secret")
    assert load_corpus(corpus, "test") is corpus
    assert "secret" not in repr(corpus)


def test_an_empty_corpus_and_half_a_surrogate_pair_are_refused() -> None:
    for source in ([], [""], ["", " \n"]):
        assert line(source) == "corpus strings is empty: choose a text with words in it"
    assert "half a surrogate pair at character 2" in line(["ab\ud800"])


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path, suffix: str) -> None:
    pipe = (tmp_path / "pipe").with_suffix(suffix)
    os.mkfifo(pipe)
    assert line(pipe) == f"{pipe} is not a regular file: save its text in one"


def test_other_things_are_refused() -> None:
    assert line(["one", 2]) == "document 1 is int, not a string: pass strings"
    assert line(b"bytes") == "document 0 is int, not a string: pass strings"
    assert line("self") == (
        "self is text that a dense model writes, for --calibration: give another text here"
    )
    assert line(7) == "a corpus is a name, a file or strings, not int: pass one of them"


def test_an_unknown_role_built_in_text_or_part_names_a_near_one() -> None:
    assert line("c4", role="tests") == "unknown role 'tests': did you mean 'test'?"
    text = line("builtin:pydocs")
    assert text == "unknown corpus 'builtin:pydocs': did you mean 'builtin:pydoc'?"
    assert line("wikitext2/tset") == "wikitext2 has no part 'tset': did you mean 'test'?"
    assert "known: all, calibration, search, test" in line("builtin:pydoc/x")
    assert "has no part 'all'" in line("c4/all")


def test_an_unknown_name_is_no_file_either() -> None:
    known = "there is no file 'wikitext' and no corpus of that name: did you mean 'wikitext2'?"
    assert line("wikitext") == known
    assert "known: builtin:pydoc, c4, ptb, wikitext2" in line("missing.txt")
    # A text passed as a name.
    assert len(line("a text\nof its own " * 1000)) < 400


def test_a_file_of_a_known_name_needs_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c4").write_text("words")
    assert "has the unknown suffix" in line("./c4")
