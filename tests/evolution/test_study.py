"""A study: a run folder in Python."""

import json
from pathlib import Path
from typing import Any

import pytest

from pruner_zero import PrunerZeroError, Study
from pruner_zero.evolution.evaluator import Outcome
from pruner_zero.evolution.record import Archive
from tests.report.conftest import JUDGED, pruned, run, write_search

__all__ = ["pruned", "run"]


def test_it_gives_the_results_of_the_search(run: Path) -> None:
    study = Study.open(run)
    assert str(study.best) == "W * G * X@global"
    assert str(study.knee) == "W * X@row"
    assert study.settings["sparsity"] == 0.5
    assert study.path == run
    assert study.prune_options == {"metric": "W * G * X@global"}
    assert [row["expression"] for row in study.to_rows()] == ["W", "W * X", "W * G * X"]


@pytest.mark.parametrize(
    ("asked", "metric"),
    [
        ({"include": ["*.q"], "exclude": ["*.0.*"]}, "W * G * X@global"),
        ({"structure": "heads", "sparsity": 0.5}, "W * G * X"),
    ],
)
def test_a_metric_is_applied_as_the_search_judged_it(
    asked: dict[str, Any], metric: str, run: Path
) -> None:
    described = json.loads((run / "run.json").read_text())
    described["settings"] |= asked
    (run / "run.json").write_text(json.dumps(described))
    assert Study.open(run).prune_options == {"metric": metric, **asked}


def test_every_candidate_is_a_row(run: Path) -> None:
    frame = Study.open(run).candidates.to_pandas()
    assert list(frame["expression"]) == [text for text, _, _ in JUDGED]
    assert frame["reconstruction"][1] == -1.0
    assert frame["all"].isna().sum() == 1
    assert list(frame["complexity"][:2]) == [1, 4]


def test_it_shows_its_hall_of_fame(run: Path) -> None:
    study = Study.open(str(run))
    assert repr(study).startswith(f"{run}: 5 candidates in 0.5 minutes\ncomplexity  loss")
    assert "<td>W * G * X</td>" in study._repr_html_()
    assert repr(study.hall_of_fame).splitlines()[0] == "3 metrics, the best of each complexity"
    assert repr(study.candidates).splitlines()[0] == "5 candidates"


def test_an_unfinished_search_has_no_best_yet(tmp_path: Path) -> None:
    study = Study.open(write_search(tmp_path / "begun", judged=()))
    assert repr(study).endswith("0 candidates in 0.0 minutes")
    with pytest.raises(PrunerZeroError, match="found no metric"):
        _ = study.best


def test_a_folder_without_a_search_is_refused(pruned: Path, tmp_path: Path) -> None:
    for folder in (pruned, tmp_path / "nowhere"):
        with pytest.raises(PrunerZeroError, match=r"holds no search|does not exist"):
            Study.open(folder)


def test_seconds_and_counts_of_avoided_candidates_come_from_the_journal(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {})
    archive.remember(Outcome(0, "reconstruction", 1.0, seconds=0.5))
    archive.remember(Outcome(1, "reconstruction", reason="constant", seconds=0.25))
    archive.remember(Outcome(0, "few", 1.0, seconds=2.0))
    archive.commit([], 3.0, {"identical": 1})
    archive.commit([], 4.0, {"identical": 2})
    study = Study.open(tmp_path)
    assert study.seconds == {"reconstruction": [0.5, 0.25], "few": [2.0]}
    assert study.avoided == {"identical": 2}
    assert (study.batches, study.elapsed) == (((0, 3.0), (0, 4.0)), 4.0)


@pytest.mark.parametrize(
    "changed", [{"settings": None}, {"settings": "x"}, {"calibration": [1]}, {"provenance": 3}]
)
def test_a_damaged_description_is_refused(changed: dict[str, Any], run: Path) -> None:
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**described, **changed}))
    with pytest.raises(PrunerZeroError, match="is damaged or of another version"):
        Study.open(run)
