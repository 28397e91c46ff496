"""The literature's corpora: which rows, how they join, and one line without the hub."""

import sys
import time
from collections.abc import Callable
from typing import Any

import datasets
import pytest

from pruner_zero.files import hub_reachable
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.source import Role
from tests.text.refusals import line

Calls = list[dict[str, Any]]


def serve(monkeypatch: pytest.MonkeyPatch, load: Callable[..., object]) -> Calls:
    """Put `load` in the place of the hub; the calls it gets."""
    calls: Calls = []

    def load_dataset(path: str, **options: Any) -> object:
        calls.append({"path": path, **options})
        return load(path, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("pruner_zero.text.hub.hub_reachable", lambda: True)
    return calls


@pytest.mark.parametrize(
    ("name", "column", "text", "asked"),
    [
        ("wikitext2", "text", "\n\n = Title = \n\n\n words \n", {"name": "wikitext-2-raw-v1"}),
        ("ptb", "sentence", "  = Title = \n  words \n", {"revision": "refs/convert/parquet"}),
    ],
)
@pytest.mark.parametrize(
    ("role", "split"), [("calibration", "train"), ("search", "validation"), ("test", "test")]
)
def test_the_rows_of_a_split_are_joined(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    column: str,
    text: str,
    asked: dict[str, str],
    role: Role,
    split: str,
) -> None:
    rows = datasets.Dataset.from_dict({column: ["", " = Title = \n", " words \n"]})
    calls = serve(monkeypatch, lambda path, **options: rows)
    corpus = load_corpus(name, role)
    assert (corpus.text, corpus.name) == (text, f"{name}/{role}")
    assert calls[0].items() >= {**asked, "split": split}.items()


@pytest.mark.parametrize(
    ("role", "split", "first", "count"),
    [
        ("calibration", "train", 0, 4096),
        ("search", "validation", 1100, 1100),
        ("test", "validation", 0, 1100),
    ],
)
def test_c4_streams_a_bounded_number_of_documents(
    monkeypatch: pytest.MonkeyPatch, role: Role, split: str, first: int, count: int
) -> None:
    taken = 0

    def rows() -> Any:
        nonlocal taken
        for index in range(10_000):
            taken += 1
            yield {"text": f"d{index}", "url": "x"}

    calls = serve(
        monkeypatch, lambda path, **options: datasets.IterableDataset.from_generator(rows)
    )
    corpus = load_corpus("c4", role)
    assert corpus.text == " ".join(f"d{index}" for index in range(first, first + count))
    assert corpus.joined == f"{count} documents joined by ' '"
    assert taken <= first + count + 1
    assert calls[0]["streaming"] is True
    assert calls[0]["split"] == split
    assert list(calls[0]["data_files"]) == [split]
    assert f"c4-{split}.00000" in calls[0]["data_files"][split]


@pytest.mark.parametrize(
    ("name", "local"),
    [("wikitext2", "wiki.valid.raw"), ("c4", "c4-validation.jsonl"), ("ptb", "ptb.valid.txt")],
)
def test_a_hub_that_is_away_is_one_quick_line(
    monkeypatch: pytest.MonkeyPatch, name: str, local: str
) -> None:
    # A port nobody listens on, so that the test says the same on a machine with a network.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    text = line(name)
    assert time.monotonic() - started < 5
    assert text == (
        f"{name} needs the Hugging Face hub, which cannot be reached: "
        f"pass a local file such as {local}, or builtin:pydoc"
    )


def test_offline_mode_asks_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_reachable()

    def nothing_cached(path: str, **options: Any) -> object:
        raise ConnectionError("Couldn't reach it on the Hub (OfflineModeIsEnabled)")

    serve(monkeypatch, nothing_cached)
    assert "which cannot be reached" in line("wikitext2")


def test_another_failure_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, **options: Any) -> object:
        raise RuntimeError("Dataset scripts are no longer supported\nbut found one")

    serve(monkeypatch, fail)
    assert line("ptb") == (
        "ptb could not be loaded from the Hugging Face hub (Dataset scripts are no longer "
        "supported but found one): pass a local file such as ptb.valid.txt, or builtin:pydoc"
    )


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in line("c4")
