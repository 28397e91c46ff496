"""`pruner-zero analyze` on a small run."""

import json
from pathlib import Path

import pytest

from pruner_zero.choices import Scope
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Outcome
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.grammar import parse
from tests.cli.conftest import Cli

TEXTS: tuple[tuple[str, Scope], ...] = (
    ("W * sqrt(G)", "global"),
    ("W * mms(G)", "row"),
    ("W * X", "row"),
    ("exp(W) * X", "global"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 120 distinct candidates, a duplicate and a rejected one."""
    folder = tmp_path / "run"
    folder.mkdir()
    archive = Archive(folder, {"seed": 0})
    records = []
    for number in range(122):
        text, scope = TEXTS[number // 30 % 4]
        loss = 3 + 0.01 * number
        results = {"reconstruction": loss - 5, "few": loss + 0.1, "all": loss}
        evaluation = Evaluation(3, loss, results, seconds=0.5)
        if number == 120:
            evaluation = Evaluation(3, 3.0, same_as=0)
        if number == 121:
            evaluation = Evaluation(0, float("inf"), reason="3 of 9 scores are not finite (3 nan)")
        candidate = Candidate(number, parse(text), scope)
        records.append(Record(candidate, evaluation, str(canonical(parse(text), scope))))
        archive.remember(Outcome(number, "few", 4.0, seconds=0.125))
    archive.commit(records, 60.0, {"identical": 3, "canonical": 2})
    return folder


def test_tables(cli: Cli, run: Path) -> None:
    done = cli("analyze", run)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "122 candidates, 120 of them distinct (98 %)"
    assert lines[1] == "rejected: 1 … of … scores are not finite (… nan)"
    assert lines[2] == "never judged: 2 canonical, 3 identical"
    cells = [line.split() for line in lines]
    assert ["few", "122", "15.2", "0.125"] in cells
    assert any(row[:5] == ["operator", "sqrt", "12", "18", "6"] for row in cells)
    assert any(row[:5] == ["few", "all", "all", "120", "1.00"] for row in cells)
    caption = "what the best 12 (10% of those judged on 'all') use, beside 108 other candidates"
    assert caption in lines


def test_json_on_stdout_and_in_a_file(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.json"
    done = cli("analyze", run, "--json", "--top", "0.25", "-o", file)
    assert done.code == 0
    printed = json.loads(done.out)
    assert printed == json.loads(file.read_text())
    assert (printed["top"], printed["best_count"], printed["best_rung"]) == (0.25, 30, "all")
    assert printed["counts"]["seconds"] == {"few": [122, 15.25]}


def test_a_run_that_has_only_begun(cli: Cli, tmp_path: Path) -> None:
    Archive(tmp_path, {})
    done = cli("analyze", tmp_path)
    assert done.code == 0
    assert done.out.startswith("0 candidates, 0 of them distinct\n")


@pytest.mark.parametrize("what", ["empty", "file", "missing"])
def test_a_folder_without_a_run_is_refused_in_one_line(cli: Cli, what: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    error = cli("analyze", tmp_path / what).error
    assert error == f"{tmp_path / what} holds no search: give the folder that search wrote"


@pytest.mark.parametrize("top", ["0", "1", "nan"])
def test_an_impossible_share_is_refused_in_one_line(cli: Cli, top: str, run: Path) -> None:
    assert "between 0 and 1" in cli("analyze", run, "--top", top).error


def test_a_file_that_cannot_be_written_is_refused_in_one_line(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert "not a folder" in cli("analyze", run, "-o", tmp_path / "file" / "out.json").error
