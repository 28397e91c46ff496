"""The journal is the run: an event in it is kept, and an event outside it never happened."""

import json
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Outcome
from pruner_zero.evolution.record import JOURNAL, Archive, Record, SearchJournal
from pruner_zero.evolution.study import Study
from pruner_zero.files import CHECKSUM, with_checksum
from pruner_zero.metric.grammar import parse
from tests.text.refusals import refusal


def record(number: int, text: str = "W * X", value: float = 1.0, rung: int = 3) -> Record:
    candidate = Candidate(number, parse(text), "row", (0,) if number else (), "grow")
    results = {"all": value} if rung == 3 else {}
    return Record(candidate, Evaluation(rung, value, results, seconds=0.5), text)


def test_records_and_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {"seed": 0})
    archive.remember(Outcome(0, "few", value=1.25, losses=(1.0, 1.5), seconds=0.1))
    archive.remember(Outcome(1, "few", reason="scores are constant"))
    rejected = Record(
        Candidate(1, parse("W - W"), "global", (), "random"),
        Evaluation(0, float("inf"), {}, "scores are constant"),
        "0",
    )
    archive.commit([record(0), rejected], elapsed=3.0)
    again = Archive(tmp_path, {"seed": 0})
    assert again.outcome(0, "few") == Outcome(0, "few", 1.25, losses=(1.0, 1.5), seconds=0.1)
    assert again.outcome(1, "few") == Outcome(1, "few", reason="scores are constant")
    assert again.outcome(0, "all") is None
    assert again.elapsed == 3.0
    assert SearchJournal(tmp_path).records == (record(0), rejected)
    written = (tmp_path / JOURNAL).read_bytes()
    again.remember(Outcome(1, "few", reason="scores are constant"))
    again.commit([record(0), rejected], elapsed=3.0)
    assert (tmp_path / JOURNAL).read_bytes() == written


def test_other_candidates_than_those_of_the_journal_are_refused(tmp_path: Path) -> None:
    """Else the outcomes of the candidates before would be taken for theirs."""
    first, second = [record(0).candidate], [record(1, "W * G").candidate]
    archive = Archive(tmp_path, {"seed": 0})
    archive.begin(first)
    archive.remember(Outcome(0, "all", value=1.0))
    archive.commit([record(0)], elapsed=1.0)
    archive.begin(second)
    before = (tmp_path / JOURNAL).read_bytes()
    again = Archive(tmp_path, {"seed": 0})
    with pytest.raises(PrunerZeroError, match=r"batch 1 in .* had other candidates"):
        again.begin(second)
    again.begin(first)
    again.commit([record(0)], elapsed=1.0)
    # The second batch was begun, and none of its candidates judged.
    with pytest.raises(PrunerZeroError, match=r"batch 2 in .* had other candidates"):
        again.begin(first)
    again.begin(second)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_search_has_ended_until_it_goes_on(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {"seed": 0})
    archive.begin([record(0).candidate])
    archive.commit([record(0)], elapsed=1.0)
    archive.remember(Outcome(0, "final", value=1.0, losses=(1.0,)))
    assert not SearchJournal(tmp_path).ended
    archive.end()
    assert SearchJournal(tmp_path).ended
    whole = (tmp_path / JOURNAL).read_bytes()
    again = Archive(tmp_path, {"seed": 0})
    again.begin([record(0).candidate])
    again.commit([record(0)], elapsed=1.0)
    again.end()
    assert (tmp_path / JOURNAL).read_bytes() == whole
    again.begin([record(1).candidate])
    assert not SearchJournal(tmp_path).ended
    # The finalists are those of the last final race.
    for finalists in ((0, 1), (1,)):
        again.end(finalists)
        assert again.journal.finalists == SearchJournal(tmp_path).finalists == finalists


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_torn_last_line_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {"seed": 0})
    archive.remember(Outcome(0, "all", value=1.0))
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"kind": "outcome", "number": 1, "ru')
    again = Archive(tmp_path, {"seed": 0})
    assert again.outcome(0, "all") is not None
    again.remember(Outcome(1, "all", value=2.0))
    assert journal.read_bytes().startswith(whole)
    assert Archive(tmp_path, {"seed": 0}).outcome(1, "all") == Outcome(1, "all", value=2.0)


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_flipped_bit_of_any_byte_is_refused(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {"seed": 0})
    archive.remember(Outcome(0, "all", value=1.25, seconds=0.1))
    archive.commit([record(0)], elapsed=1.0)
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    # The last byte ends the last line, which counts as torn without it.
    for place in range(len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        journal.write_bytes(data)
        with pytest.raises(PrunerZeroError, match=r"line \d of .* is damaged: restore the file"):
            SearchJournal(tmp_path)


def test_a_run_of_other_settings_is_refused_once_it_has_an_outcome(tmp_path: Path) -> None:
    Archive(tmp_path, {"seed": 0}).begin([record(0).candidate])
    Archive(tmp_path, {"seed": 1, "sparsity": 0.5}).remember(Outcome(0, "all", value=1.0))
    assert SearchJournal(tmp_path).settings == {"seed": 1, "sparsity": 0.5}
    with pytest.raises(PrunerZeroError, match=r"other settings \(seed changed\)"):
        Archive(tmp_path, {"seed": 2, "sparsity": 0.5})


def test_the_first_of_equal_candidates_counts(tmp_path: Path) -> None:
    archive = Archive(tmp_path, {})
    form = parse("W")
    assert archive.first("W", Candidate(0, form, "row")) is None
    assert archive.first("W", Candidate(3, form, "row")) == 0
    assert archive.first("W", Candidate(4, form, "global")) is None
    assert archive.first("W", Candidate(5, form, "global")) == 4
    assert archive.first("W", Candidate(0, form, "row")) is None


def test_the_journal_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    Archive(tmp_path, {"seed": 0}).remember(Outcome(0, "all", value=1.0))
    journal = tmp_path / JOURNAL
    first, *rest = journal.read_text().splitlines()
    header = {key: value for key, value in json.loads(first).items() if key != CHECKSUM}
    older = with_checksum({**header, "format": 2})
    journal.write_text("\n".join([json.dumps(older), *rest]) + "\n")
    for read in (lambda: Study.open(tmp_path), lambda: Archive(tmp_path, {"seed": 0})):
        assert "another version of pruner-zero wrote" in refusal(read)


def test_a_journal_that_lacks_a_candidate_is_refused(tmp_path: Path) -> None:
    """Every line has a checksum of its own, so that a missing one leaves the others intact."""
    archive = Archive(tmp_path, {})
    archive.commit([record(number) for number in range(3)], elapsed=1.0)
    lines = (tmp_path / JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_text("".join([*lines[:2], *lines[3:]]))
    line = r"lacks the line of candidate 1: restore it, or delete the line of candidate 2"
    with pytest.raises(PrunerZeroError, match=line):
        _ = SearchJournal(tmp_path).records


def test_what_is_no_journal_of_a_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"run": "abc"}\n')
    with pytest.raises(PrunerZeroError, match="holds no search"):
        SearchJournal(tmp_path)
    (tmp_path / JOURNAL).unlink()
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(PrunerZeroError, match="cannot be read"):
        SearchJournal(tmp_path)
