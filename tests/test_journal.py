"""A journal of steps: steps on disk count, damaged files and other runs are refused."""

from pathlib import Path

import pytest

from pruner_zero.files import sha256
from pruner_zero.journal import JOURNAL, Journal
from tests.text.refusals import refusal

RUN = {"--seed": 0}


def file(folder: Path, name: str, text: str = "data") -> dict[str, str]:
    (folder / name).write_text(text)
    return {name: sha256(folder / name)}


def test_steps_are_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN)
    assert journal.lines == []
    journal.append({"block": 0}, file(tmp_path, "a"))
    journal.append({"block": 1}, file(tmp_path, "b"))
    assert [line["block"] for line in Journal(tmp_path, RUN).lines] == [0, 1]


def test_files_that_no_later_step_needs_are_deleted_and_not_missed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN)
    journal.append({}, file(tmp_path, "a"))
    journal.append({}, file(tmp_path, "b"), ["a", "never there"])
    assert not (tmp_path / "a").exists()
    assert len(Journal(tmp_path, RUN).lines) == 2


def test_a_file_that_was_to_go_may_still_be_there(tmp_path: Path) -> None:
    # Killed between the journal's line and the deletion.
    journal = Journal(tmp_path, RUN)
    journal.append({}, file(tmp_path, "a"))
    journal.append({}, {}, ["a"])
    file(tmp_path, "a", "half")
    assert len(Journal(tmp_path, RUN).lines) == 2


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    Journal(tmp_path, RUN).append({}, file(tmp_path, "a"))
    if damage == "changed":
        (tmp_path / "a").write_text("date")
    else:
        (tmp_path / "a").unlink()
    assert f"{tmp_path / 'a'} is damaged" in refusal(lambda: Journal(tmp_path, RUN))


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_changed_line_is_noticed(tmp_path: Path) -> None:
    Journal(tmp_path, RUN).append({"block": 1}, {})
    journal = tmp_path / JOURNAL
    journal.write_text(journal.read_text().replace('"block": 1', '"block": 2'))
    assert "is damaged" in refusal(lambda: Journal(tmp_path, RUN))


def test_differing_settings_of_two_runs_are_named(tmp_path: Path) -> None:
    Journal(tmp_path, {"--seed": "0", "the text": "a", "--mode": "x"}).append({}, {})
    changed = {"--seed": "1", "the text": "b", "--mode": "x"}
    line = refusal(lambda: Journal(tmp_path, changed))
    assert "with other settings (--seed, the text changed): finish that run" in line
    assert len(Journal(tmp_path, {"--mode": "x", "the text": "a", "--seed": "0"}).lines) == 1


def test_another_run_is_refused_once_it_has_a_step(tmp_path: Path) -> None:
    Journal(tmp_path, RUN)
    journal = Journal(tmp_path, {"--seed": 1})
    journal.append({}, {})
    assert "other settings" in refusal(lambda: Journal(tmp_path, RUN))
    journal.discard()
    assert Journal(tmp_path, RUN).lines == []


def test_half_written_files_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "blocks"
    Journal(folder, RUN).append({}, file(folder, "a"))
    for name in ("weights-0001.safetensors.71.partial", "notes.partial"):
        (folder / name).write_text("half")
    Journal(folder, RUN)
    assert {path.name for path in folder.iterdir()} == {JOURNAL, "a", "notes.partial"}


def test_overwrite_begins_again_after_damage_and_after_another_run(tmp_path: Path) -> None:
    Journal(tmp_path, {"--seed": 1}).append({}, file(tmp_path, "a"))
    assert len(Journal(tmp_path, {"--seed": 1}, overwrite=True).lines) == 1
    assert Journal(tmp_path, RUN, overwrite=True).lines == []
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
    Journal(tmp_path, RUN).append({}, file(tmp_path, "a"))
    file(tmp_path, "a", "date")
    assert Journal(tmp_path, RUN, overwrite=True).lines == []
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]


def test_a_line_may_say_how_many_steps_are_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RUN)
    assert journal.finished == 0
    journal.append({}, {})
    assert journal.finished == 1
    journal.append({"finished": 7}, {})
    assert Journal(tmp_path, RUN).finished == 7


def test_a_decision_of_the_first_start_is_kept(tmp_path: Path) -> None:
    assert Journal(tmp_path, RUN).decide("room", lambda: [1.5, None]) == [1.5, None]
    journal = Journal(tmp_path, RUN)
    journal.append({"block": 0}, {})
    for again in (journal, Journal(tmp_path, RUN)):
        assert again.decide("room", lambda: [0]) == [1.5, None]
        assert again.decide("race", lambda: "a") == "a"
        assert again.finished == len(again.lines) == 1


def test_a_run_that_has_only_decided_gives_way_to_another(tmp_path: Path) -> None:
    Journal(tmp_path, RUN).decide("room", lambda: False)
    assert Journal(tmp_path, {"--seed": 1}).decide("room", lambda: True)


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_changed_decision_is_noticed(tmp_path: Path) -> None:
    Journal(tmp_path, RUN).decide("room", lambda: False)
    journal = tmp_path / JOURNAL
    journal.write_text(journal.read_text().replace("false", "true"))
    assert "is damaged" in refusal(lambda: Journal(tmp_path, RUN))
