"""Files are whole or not there, journals lose at most a torn line, folders have one holder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from multiprocessing import get_context
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import (
    LOCK,
    append_line,
    check_file,
    check_writable,
    locked,
    read_lines,
    write_atomic,
    writing,
)
from tests.full_disk import full_disk

REWRITER = """
import sys
from pathlib import Path
from pruner_zero.files import write_atomic
print("ready", flush=True)
for count in range(10**9):
    write_atomic(Path(sys.argv[1]), str(count % 10) * 3_000_000)
"""


@pytest.mark.fault("SIGKILL after each block, during the final save, and while a file is written")
def test_a_reader_never_sees_half_a_file_even_after_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "value.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", REWRITER, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    letters = set()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline or not file.exists():
        if file.exists():
            text = file.read_text()
            assert len(text) == 3_000_000
            assert text == text[0] * len(text)
            letters.add(text[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    text = file.read_text()
    assert text == text[0] * 3_000_000
    assert len(letters) > 1


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    write_atomic(tmp_path / "a", b"new \xff")
    assert (tmp_path / "a").read_bytes() == b"new \xff"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    error = r"a\.json cannot be written \(no space left"
    with full_disk(), pytest.raises(PrunerZeroError, match=error):
        write_atomic(file, "x" * 50_000)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
def test_a_journal_survives_a_full_disk(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    append_line(journal, {"block": 0})
    with full_disk(), pytest.raises(PrunerZeroError, match="no space left"):
        append_line(journal, {"block": "x" * 50_000})
    append_line(journal, {"block": 1})
    assert read_lines(journal) == [{"block": 0}, {"block": 1}]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "not writable"),
        (OSError(30, "Read-only file system"), "not writable"),
        (OSError(28, "No space left on device"), "no space left"),
        (OSError(122, "Disk quota exceeded"), "no space left"),
        (OSError(5, "Input/output error"), "input/output error"),
        (NotADirectoryError(20, "Not a directory"), "not a directory"),
    ],
)
def test_every_write_error_of_the_system_is_one_line(error: OSError, words: str) -> None:
    with pytest.raises(PrunerZeroError, match=words) as raised, writing(Path("out")):
        raise error
    assert str(raised.value).startswith("out cannot be written")


def test_a_write_error_in_the_cache_says_what_chooses_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path))
    place = r"place \(--cache, \$PRUNER_ZERO_CACHE\)$"
    with pytest.raises(PrunerZeroError, match=place), writing(tmp_path / "text"):
        raise PermissionError(13, "Permission denied")


def test_check_writable_looks_at_the_nearest_folder_there_is(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deeper" / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunerZeroError, match="file is not a folder"):
        check_writable(tmp_path / "file" / "out")
    assert sorted(os.listdir(tmp_path)) == ["file"]


@pytest.mark.parametrize("text", ["weights", "[1]", '{"losses": 1}', "<p>"])
@pytest.mark.parametrize("keys", [{"rows"}, ()])
def test_a_file_that_is_no_earlier_output_is_not_replaced(
    text: str, keys: Collection[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(PrunerZeroError, match="is no earlier output: choose another file"):
        check_file(tmp_path / "file", keys)
    assert (tmp_path / "file").read_text() == text


def test_an_earlier_output_may_be_replaced(tmp_path: Path) -> None:
    for text, keys in (('{"rows": []}', {"losses", "rows"}), ("<!doctype html><p>", ())):
        (tmp_path / "file").write_text(text)
        assert check_file(tmp_path / "file", keys) == tmp_path / "file"
    assert check_file(tmp_path / "new") == tmp_path / "new"


def test_no_name_and_a_folder_are_no_files(tmp_path: Path) -> None:
    for output in ("", tmp_path):
        with pytest.raises(PrunerZeroError, match="is a folder: name a file"):
            check_file(output)


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    append_line(journal, {"n": 0})
    append_line(journal, {"n": 1})
    whole = journal.read_bytes()
    for length in range(len(whole) // 2 + 1, len(whole)):
        journal.write_bytes(whole[:length])
        assert read_lines(journal) == [{"n": 0}]
        append_line(journal, {"n": 2})
        assert read_lines(journal) == [{"n": 0}, {"n": 2}]


def test_a_journal_that_is_only_a_torn_line_is_empty(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"n":')
    assert read_lines(journal) == []
    append_line(journal, {"n": 1})
    assert read_lines(journal) == [{"n": 1}]


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
@pytest.mark.parametrize("damage", ['{"n": 0', "[1]", "7", "\x00\x00", ""])
def test_a_damaged_earlier_line_is_refused(tmp_path: Path, damage: str) -> None:
    journal = tmp_path / "journal"
    journal.write_text(f'{{"n": 0}}\n{damage}\n{{"n": 2}}\n')
    with pytest.raises(PrunerZeroError, match=r"line 2 of .*journal is damaged"):
        read_lines(journal)


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path: Path) -> None:
    value = {"text": "one\u2028two\x0bthree\rfour"}
    append_line(tmp_path / "journal", value)
    assert json.dumps(read_lines(tmp_path / "journal")) == json.dumps([value])


def test_no_journal_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none") == []


def _hold(folder: str, held: object, done: object) -> None:
    with locked(Path(folder)):
        held.set()  # type: ignore[attr-defined]
        done.wait(60)  # type: ignore[attr-defined]


@pytest.mark.fault("a second process on one run folder or one cache entry")
def test_a_folder_has_one_holder_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    context = get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "work"), held, done))
    holder.start()
    assert held.wait(60)
    holding = locked(tmp_path / "work")
    with pytest.raises(PrunerZeroError, match="another process is working in"), holding:
        pass
    holder.kill()
    holder.join()
    for _ in range(2):
        with locked(tmp_path / "work"):
            pass
        # By it `check_output` knows the folder of an unfinished run.
        assert (tmp_path / "work" / LOCK).exists()


def test_the_holder_may_delete_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "work"):
        shutil.rmtree(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    with locked(tmp_path / "work"):
        assert (tmp_path / "work").is_dir()


@pytest.mark.fault("SIGKILL after each block, during the final save, and while a file is written")
def test_half_written_files_of_a_killed_holder_are_deleted(tmp_path: Path) -> None:
    keep = ("result.json", "blocks.partial", "notes.partial", "deep.7.partial")
    for name in keep[:3]:
        (tmp_path / name).write_text("kept")
    (tmp_path / keep[3]).mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "result.json")],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    child.kill()
    child.wait()
    assert (tmp_path / f"result.json.{child.pid}.partial").exists()
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted([".lock", *keep])
    assert (tmp_path / "result.json").read_text() == "kept"


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from pruner_zero.files import committing
with committing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""
