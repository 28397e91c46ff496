"""What results lie on disk: read as they are, refused with one line where they are not."""

import json
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import Study
from pruner_zero.report.read import ComparisonRun, PruneRun, read_result
from tests.report.conftest import JUDGED, PROVENANCE, SEARCH, write_search

HOLDS = '{"rows": [%s], "provenance": {"settings": {}}}'


def test_a_search(run: Path) -> None:
    found = read_result(run)
    assert isinstance(found, Study)
    assert [str(one.candidate.expression) for one in found.records] == [one[0] for one in JUDGED]
    assert found.batches == ((2, 10.0), (4, 20.0), (5, 30.0))
    assert found.settings == SEARCH
    assert found.provenance == PROVENANCE
    assert found.windows["search"]["text"] == "other.txt"


def test_a_search_that_was_cut_off_in_a_batch(run: Path) -> None:
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + '{"kind": "bat')
    (run / "run.json").unlink()
    found = read_result(run)
    assert isinstance(found, Study)
    assert len(found.records) == 5
    assert found.batches == ((2, 10.0), (4, 20.0))
    assert found.settings == SEARCH
    assert found.provenance == {}


def test_a_pruned_model(pruned: Path) -> None:
    found = read_result(pruned)
    assert isinstance(found, PruneRun)
    assert (found.expression, found.sparsity, found.timing) == ("W * X", 0.375, {})
    assert [(one.block, one.zeros) for one in found.matrices] == [(0, 16), (0, 8), (1, 16), (1, 8)]
    (pruned / "timing.json").write_text('{"seconds": 3.5}')
    found = read_result(pruned)
    assert isinstance(found, PruneRun)
    assert found.timing == {"seconds": 3.5}


def test_a_comparison(table: Path) -> None:
    found = read_result(table)
    assert isinstance(found, ComparisonRun)
    assert [row["method"] for row in found.rows] == ["dense", "wanda", "mine", "ria"]
    assert found.settings["text"] == "test.txt"
    assert found.provenance == PROVENANCE
    assert found.windows["evaluation"]["selection"] == "consecutive"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing", None, "does not exist"),
        ("folder/", None, "holds no result"),
        ("page.html", "<p>", "holds no result"),
        ("list.json", "[]", "holds no object"),
        ("tree.json", '{"data": "W"}', "is no comparison"),
        ("torn.json", '{"rows": [', "not valid JSON"),
        ("deep.json", "[" * 100_000, "not valid JSON"),
        ("bytes.json", b"\xff\xfe", "not valid JSON"),
        ("rows.json", HOLDS % "{}", "KeyError"),
        (
            "text.json",
            HOLDS % '{"method": "a", "perplexity": "9", "sparsity": 0}',
            "'9' is no number",
        ),
        ("row.json", HOLDS % '{"method": 7, "perplexity": 9, "sparsity": 0}', "7 is no method"),
        (
            "metric.json",
            HOLDS % '{"method": "a", "perplexity": 9, "sparsity": 0, "expression": "W *"}',
            "ParseError",
        ),
        ("words.json", '{"rows": "abc", "provenance": {"settings": {}}}', "TypeError"),
        ("plain.json", '{"rows": [], "provenance": {}}', "KeyError: 'settings'"),
    ],
)
def test_what_is_no_result_is_one_line(
    name: str, content: str | bytes | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif isinstance(content, str):
        path.write_text(content)
    elif content:
        path.write_bytes(content)
    with pytest.raises(PrunerZeroError, match=words) as raised:
        read_result(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "candidate", "number": 5}',
        '{"kind": "batch"}',
        '{"no": "kind"}',
        "nonsense",
    ],
)
def test_a_damaged_journal_is_one_line(line: str, run: Path) -> None:
    with open(run / "journal.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(PrunerZeroError, match=r"damaged.*restore"):
        read_result(run)


@pytest.mark.parametrize("key", ["settings", "matrices", "expression", "calibration"])
def test_a_damaged_record_of_pruning_is_one_line(key: str, pruned: Path) -> None:
    file = pruned / "pruning.json"
    told = json.loads(file.read_text())
    del told[key]
    file.write_text(json.dumps(told))
    with pytest.raises(PrunerZeroError, match=f"damaged.*{key}"):
        read_result(pruned)


def test_an_empty_search_is_a_search(tmp_path: Path) -> None:
    found = read_result(write_search(tmp_path, judged=()))
    assert isinstance(found, Study)
    assert (found.records, found.batches) == ((), ())
