"""Results on disk are read as they are, and anything else is refused in one line."""

import json
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.study import Study
from pruner_zero.report.results import (
    ComparisonRun,
    EvaluationRun,
    PruneRun,
    RecoveryRun,
    read_result,
)
from tests.report.conftest import (
    JUDGED,
    PROVENANCE,
    SEARCH,
    write_evaluation,
    write_recovery,
    write_search,
)

HOLDS = '{"rows": [%s], "provenance": {"settings": {}}}'


def test_a_search(run: Path) -> None:
    study = read_result(run)
    assert isinstance(study, Study)
    tried = [str(record.candidate.expression) for record in study.records]
    assert tried == [text for text, _, _ in JUDGED]
    assert study.batches == ((2, 10.0), (4, 20.0), (5, 30.0))
    assert study.settings == SEARCH
    assert study.provenance == PROVENANCE
    assert study.windows["search"]["text"] == "other.txt"


def test_a_search_that_was_cut_off_in_a_batch(tmp_path: Path) -> None:
    run = write_search(tmp_path / "run", ended=False)
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + '{"kind": "bat')
    (run / "run.json").unlink()
    study = read_result(run)
    assert isinstance(study, Study)
    assert len(study.records) == 5
    assert study.batches == ((2, 10.0), (4, 20.0))
    assert not study.ended
    assert study.settings == SEARCH
    assert study.provenance == {}


def test_a_pruned_model(pruned: Path) -> None:
    result = read_result(pruned)
    assert isinstance(result, PruneRun)
    assert (str(result.expression), result.sparsity, result.timing) == ("W * X", 0.375, {})
    zeros = [(matrix.block, matrix.zeros) for matrix in result.matrices]
    assert zeros == [(0, 16), (0, 8), (1, 16), (1, 8)]
    (pruned / "timing.json").write_text('{"seconds": 3.5}')
    result = read_result(pruned)
    assert isinstance(result, PruneRun)
    assert result.timing == {"seconds": 3.5}


def test_a_comparison(table: Path) -> None:
    comparison = read_result(table)
    assert isinstance(comparison, ComparisonRun)
    assert [row.method for row in comparison.rows] == ["dense", "wanda", "mine", "ria"]
    assert comparison.settings["text"] == "test.txt"
    assert comparison.provenance == PROVENANCE
    assert comparison.windows["evaluation"]["selection"] == "consecutive"


def test_measurements(tmp_path: Path) -> None:
    measured = read_result(write_evaluation(tmp_path / "measured.json"))
    assert isinstance(measured, EvaluationRun)
    assert measured.settings == {"model": "models/pruned"}
    assert [text.perplexity for text in measured.texts] == [44.5]
    assert [row.model for row in measured.speed] == ["models/pruned", "models/tiny"]
    assert measured.windows["test.txt"]["windows"] == 4


def test_a_perplexity_of_an_earlier_version_names_no_model(tmp_path: Path) -> None:
    for others, name in (({}, "models/pruned"), ({"speed": None}, "measured.json")):
        absent = {"model": None, "settings": None, **others}
        measured = read_result(write_evaluation(tmp_path / "measured.json", **absent))
        assert measured.settings["model"] == name


def test_a_comparison_that_was_interrupted_is_refused(table: Path) -> None:
    table.write_text(json.dumps({**json.loads(table.read_text()), "complete": False}))
    with pytest.raises(PrunerZeroError, match=r"lacks rows, since compare was interrupted"):
        read_result(table)


def test_a_recovered_model_is_read_by_its_own_record(pruned: Path) -> None:
    """Beside it is the record of prune."""
    write_recovery(pruned)
    recovered = read_result(pruned)
    assert isinstance(recovered, RecoveryRun)
    assert [point["step"] for point in recovered.curve] == [0, 4]
    assert recovered.windows.keys() == {"training", "validation"}
    assert recovered.timing == {"seconds": 2.5}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nothing", None, "does not exist"),
        ("folder/", None, "holds no result"),
        ("page.html", "<p>", "holds no result"),
        ("list.json", "[]", "holds no object"),
        ("tree.json", '{"data": "W"}', "holds no result"),
        ("torn.json", '{"rows": [', "not valid JSON"),
        ("deep.json", "[" * 100_000, "not valid JSON"),
        ("bytes.json", b"\xff\xfe", "not valid JSON"),
        ("rows.json", HOLDS % "{}", "rows.0.method Field required"),
        (
            "text.json",
            HOLDS % '{"method": "a", "perplexity": "9", "sparsity": 0}',
            "rows.0.perplexity Input should be a valid number",
        ),
        ("row.json", HOLDS % '{"method": 7, "perplexity": 9, "sparsity": 0}', "rows.0.method"),
        (
            "metric.json",
            HOLDS % '{"method": "a", "perplexity": 9, "sparsity": 0, "expression": "W *"}',
            "ParseError",
        ),
        ("words.json", '{"rows": "abc", "provenance": {"settings": {}}}', "rows Input should be"),
        ("plain.json", '{"rows": [], "provenance": {}}', "KeyError: 'settings'"),
    ],
)
def test_a_path_without_a_result_is_refused_in_one_line(
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
    ['{"kind": "candidate", "number": 5}', '{"kind": "batch"}', '{"no": "kind"}', "nonsense"],
)
def test_a_damaged_journal_is_one_line(line: str, run: Path) -> None:
    with open(run / "journal.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(PrunerZeroError, match=r"damaged.*restore"):
        read_result(run)


@pytest.mark.parametrize("key", ["settings", "matrices", "expression"])
def test_a_damaged_record_of_pruning_is_one_line(key: str, pruned: Path) -> None:
    file = pruned / "pruning.json"
    record = json.loads(file.read_text())
    del record[key]
    file.write_text(json.dumps(record))
    with pytest.raises(PrunerZeroError, match=f"damaged.*{key}"):
        read_result(pruned)


def test_an_empty_search_is_a_search(tmp_path: Path) -> None:
    study = read_result(write_search(tmp_path, judged=()))
    assert isinstance(study, Study)
    assert (study.records, study.batches) == ((), ())
