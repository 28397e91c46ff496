"""The cache says what it holds, and deletes what nobody uses: on request, and beyond its bounds."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest
import torch

from pruner_zero import PrunerZeroError
from pruner_zero.cache import USED, clear, entries, filling, made_once, use
from pruner_zero.calibration.calibrate import StatisticsStore

DAY = 24 * 3600
FIRST, SECOND, THIRD, FOURTH = (digit * 20 for digit in "0123")

Add = Callable[..., Path]


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Add an entry of `size` bytes that was last used so many `days` ago."""

    def run(name: str, days: float, size: int = 1000) -> Path:
        folder = tmp_path / name
        with use(folder, "fox"):
            (folder / "file").write_bytes(b"\0" * (size - (folder / USED).stat().st_size))
        os.utime(folder / USED, (time.time() - days * DAY,) * 2)
        return folder

    return run


def names(cache: Path) -> list[str]:
    return [entry.folder.name for entry in entries(cache)]


def test_an_entry_says_what_it_is_of_which_model_and_when_it_was_used(
    add: Add, tmp_path: Path
) -> None:
    add(FIRST, 3, 5000)
    add(f"text-{SECOND}", 1)
    made_once(tmp_path / "models/a", lambda folder: (folder / "w").touch(), "builtin:fox")
    found = entries(tmp_path)
    assert [(entry.what, entry.model) for entry in found] == [
        ("model", "builtin:fox"),
        ("text", "fox"),
        ("statistics", "fox"),
    ]
    assert [entry.bytes for entry in found[1:]] == [1000, 5000]
    assert [round((time.time() - entry.used) / DAY) for entry in found] == [0, 1, 3]


def test_an_entry_of_an_earlier_version_and_a_damaged_one_are_listed(
    add: Add, tmp_path: Path
) -> None:
    (tmp_path / FIRST).mkdir()
    (add(SECOND, 0) / USED).write_text("[")
    assert {(entry.folder.name, entry.model) for entry in entries(tmp_path)} == {
        (FIRST, ""),
        (SECOND, ""),
    }


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert entries(tmp_path / "none") == []
    assert clear(cache=tmp_path / "none") == []


def test_clear_deletes_what_was_not_used_for_so_long_and_no_other_folder(
    add: Add, tmp_path: Path
) -> None:
    add(FIRST, 8)
    add(SECOND, 6)
    add("notes", 100)
    assert [entry.folder.name for entry in clear(7, tmp_path)] == [FIRST]
    assert names(tmp_path) == [SECOND]
    assert [entry.folder.name for entry in clear(cache=tmp_path)] == [SECOND]
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_an_entry_that_another_process_uses_stays(add: Add, tmp_path: Path) -> None:
    folder = add(FIRST, 100)
    code = (
        "import sys; from pathlib import Path; from pruner_zero.cache import use\n"
        "with use(Path(sys.argv[1]), 'fox'): print('used', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "used\n"
        assert clear(cache=tmp_path) == []
        assert (folder / "file").exists()
    assert len(clear(cache=tmp_path)) == 1


def test_a_store_keeps_its_statistics_while_it_is_there(tmp_path: Path) -> None:
    writer, reader = (StatisticsStore(tmp_path / FIRST, model="fox") for _ in range(2))
    assert not writer.has("X")
    assert entries(tmp_path) == []
    writer.commit({"X": {0: writer.write("X", 0, {"m": torch.ones(3)})}})
    assert reader.has("X")
    del writer
    gc.collect()
    assert clear(cache=tmp_path) == []
    assert [entry.model for entry in entries(tmp_path)] == ["fox"]
    del reader
    gc.collect()
    assert len(clear(cache=tmp_path)) == 1


def test_a_model_copy_is_used_until_the_process_ends(tmp_path: Path) -> None:
    folder = tmp_path / "models/a"
    made_once(folder, lambda partial: (partial / "w").touch(), "builtin:fox")
    assert clear(cache=tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == [USED, "w"]


def test_a_copy_is_on_disk_before_it_has_its_name_and_another_process_may_be_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    sync, replace, folder = os.fsync, os.replace, tmp_path / "models/a"

    def noted(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def late(source: Path, target: Path) -> None:
        assert {str(source), *map(str, source.iterdir())} <= synced
        target.mkdir()
        (target / "w").touch()
        replace(source, target)

    monkeypatch.setattr("pruner_zero.cache.os.fsync", noted)
    monkeypatch.setattr("pruner_zero.cache.os.replace", late)
    made_once(folder, lambda partial: (partial / "w").touch(), "builtin:fox")
    with pytest.raises(FileNotFoundError):
        made_once(tmp_path / "models/b", lambda partial: (partial / "w/x").touch(), "fox")
    assert list(folder.parent.iterdir()) == [folder]


def test_one_who_wants_an_entry_while_it_is_deleted_gets_a_new_one(
    add: Add, tmp_path: Path
) -> None:
    folder = add(FIRST, 0)
    with open(folder / USED) as held:
        flock(held, LOCK_EX)
        other = threading.Thread(target=lambda: stack.append(use(folder, "fox")))
        stack: list[object] = []
        other.start()
        time.sleep(0.2)
        assert other.is_alive()
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    other.join(10)
    assert [file.name for file in folder.iterdir()] == [USED]
    assert clear(cache=tmp_path) == []


def test_a_cache_that_cannot_be_written_is_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    use(tmp_path / "file" / FIRST, "fox").close()


def test_what_is_beyond_the_bounds_goes_when_something_is_written(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE_GB", "0.000003")
    add(FIRST, 4)
    add(SECOND, 3)
    add(THIRD, 2)
    add(f"text-{FIRST}", 89)
    add(f"text-{SECOND}", 91)
    new = tmp_path / FOURTH
    with use(new, "fox"), filling(new):
        (new / "file").write_bytes(b"\0" * 900)
    # Beyond 3000 bytes the least recently used statistics went, and the text of 91 days ago.
    assert names(tmp_path) == [FOURTH, THIRD, SECOND, f"text-{FIRST}"]
    monkeypatch.setenv("PRUNER_ZERO_CACHE_DAYS", "2.5")
    with use(new, "fox"), filling(new):
        pass
    assert names(tmp_path) == [FOURTH, THIRD]


def test_what_is_being_written_stays_though_it_is_larger_than_the_bound(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE_GB", "0")
    add(FIRST, 1)
    with use(tmp_path / SECOND, "fox"), filling(tmp_path / SECOND):
        pass
    assert names(tmp_path) == [SECOND]


def test_a_bound_that_is_no_number_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE_DAYS", "many")
    with (
        pytest.raises(PrunerZeroError, match=r"^\$PRUNER_ZERO_CACHE_DAYS is 'many': give a number"),
        filling(tmp_path / FIRST),
    ):
        raise AssertionError("worked")
