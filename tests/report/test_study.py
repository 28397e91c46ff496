"""A study: a run folder in Python."""

from pathlib import Path

import pytest

from pruner_zero import PrunerZeroError, Study
from pruner_zero.analysis import analyze
from pruner_zero.evolution import SearchJournal
from pruner_zero.report.read import read_result
from tests.report.conftest import JUDGED, write_search


def test_it_tells_what_the_search_found(run: Path) -> None:
    study = Study.open(run)
    assert (str(study.best), study.best.scope) == ("W * G * X", "global")
    assert (str(study.knee), study.knee.scope) == ("W * X", "row")
    assert study.settings["sparsity"] == 0.5
    assert study.folder == run
    assert study.prune_options == {"metric": str(run / "best.json")}
    assert [row["expression"] for row in study.to_rows()] == ["W", "W * X", "W * G * X"]


def test_every_candidate_is_a_row(run: Path) -> None:
    frame = Study.open(run).candidates.to_pandas()
    assert list(frame["expression"]) == [text for text, _, _ in JUDGED]
    assert frame["reconstruction"][1] == -1.0
    assert frame["all"].isna().sum() == 1
    assert list(frame["complexity"][:2]) == [1, 4]


def test_its_analysis_is_that_of_the_command(run: Path) -> None:
    assert Study.open(run).analysis().counts.candidates == len(JUDGED)
    assert Study.open(run).analysis(0.5).shares == analyze(SearchJournal(run).records, 0.5).shares
    assert {"low", "high", "p"} <= set(Study.open(run).analysis().to_pandas().columns)


def test_its_report_lies_in_its_folder_unless_told_otherwise(run: Path, tmp_path: Path) -> None:
    assert Study.open(run).report() == run / "report.html"
    assert Study.open(run).report(tmp_path / "page.html").is_file()


def test_it_shows_its_hall_of_fame(run: Path) -> None:
    study = Study.open(str(run))
    assert repr(study).startswith(f"{run}: 5 candidates in 0.5 minutes\ncomplexity  loss")
    assert "<td>W * G * X</td>" in study._repr_html_()
    assert repr(study.hall_of_fame).splitlines()[0] == "3 metrics, the best of each complexity"
    assert repr(study.candidates).splitlines()[0] == "5 candidates"
    assert "what the best 1 (10% of all) use" in repr(study.analysis())


def test_an_unfinished_search_has_no_best_yet(tmp_path: Path) -> None:
    study = Study.open(write_search(tmp_path / "begun", judged=()))
    assert repr(study).endswith("0 candidates in 0.0 minutes")
    with pytest.raises(PrunerZeroError, match="found no metric"):
        _ = study.best


def test_what_is_no_search_is_refused(pruned: Path, tmp_path: Path) -> None:
    assert read_result(pruned)
    for folder in (pruned, tmp_path / "nowhere"):
        with pytest.raises(PrunerZeroError, match=r"holds no search|does not exist"):
            Study.open(folder)
