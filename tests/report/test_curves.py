"""What is drawn of a search: candidates that compare with each other, and no more than needed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pruner_zero.evolution.archive import Record
from pruner_zero.report import curves
from pruner_zero.report.read import SearchRun, read_result
from tests.report.conftest import JUDGED, Judged, write_search


def search(folder: Path, judged: Sequence[Judged] = JUDGED, batch: int = 2) -> SearchRun:
    found = read_result(write_search(folder, judged, batch))
    assert isinstance(found, SearchRun)
    return found


def numbers(records: Sequence[Record]) -> list[int]:
    return [record.candidate.number for record in records]


def test_the_cloud_holds_those_of_the_dearest_rung(tmp_path: Path) -> None:
    cloud = curves.Cloud.of(search(tmp_path))
    assert cloud is not None
    assert (cloud.rung, cloud.total, cloud.above) == ("all", 4, 0)
    assert numbers(cloud.front) == [0, 1, 3]
    assert numbers(cloud.others) == [2]
    assert [curves.place(one) for one in cloud.front] == [(1, 6.0), (4, 4.0), (9, 3.8)]


def test_many_are_thinned_and_those_far_above_left_out(tmp_path: Path) -> None:
    judged: list[Judged] = [("W", "row", {"all": 5.0}), ("W * G * X", "row", {"all": 3.0})]
    judged += [("W * G * X", "row", {"all": 4.0 + number / 2000}) for number in range(2000)]
    judged += [("W * G", "row", {"all": 50.0})] * 100
    # The rung is the number of results in `write_search`: all of them are on the first.
    cloud = curves.Cloud.of(search(tmp_path, judged))
    assert cloud is not None
    assert numbers(cloud.front) == [0, 1]
    assert (cloud.total, cloud.above) == (2102, 100)
    assert len(cloud.others) <= curves.MOST_DOTS
    drawn = [one.evaluation.value for one in cloud.others]
    assert drawn == sorted(drawn)
    assert drawn[0] == 4.0
    assert drawn[-1] == pytest.approx(5.0, abs=0.01)


def test_the_best_so_far_by_evaluations(tmp_path: Path) -> None:
    assert curves.best_by_evaluations(search(tmp_path)) == [(1, 6.0), (2, 4.0), (4, 3.8), (5, 3.8)]


def test_the_best_so_far_by_time(tmp_path: Path) -> None:
    assert curves.best_by_time(search(tmp_path)) == [(10.0, 4.0), (20.0, 3.8), (30.0, 3.8)]


def test_what_was_not_judged_has_no_place(tmp_path: Path) -> None:
    run = search(tmp_path, [("W", "row", {}), ("X * W", "row", {})])
    assert curves.Cloud.of(run) is None
    assert curves.best_by_evaluations(run) == curves.best_by_time(run) == []


@pytest.mark.parametrize(
    ("seconds", "unit"), [(10, "seconds"), (180, "minutes"), (10_799, "minutes"), (10_800, "hours")]
)
def test_the_unit_of_time(seconds: float, unit: str) -> None:
    assert curves.time_unit(seconds)[1] == unit
