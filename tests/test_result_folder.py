"""A result folder is whole or not there, and traces of a finished run are deleted."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pruner_zero import result_folder
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.provenance import Cost
from pruner_zero.result_folder import GGUF_PRUNING, build_folder, check_output

WEIGHTS = f"all of them, {GGUF_PRUNING}"


def work_in(partial: Path, name: str = "blocks") -> Journal:
    return Journal(partial / name, {})


def build(output: Path, overwrite: bool = False) -> None:
    def run(work: Journal | None) -> Cost:
        assert work is not None
        if not work.lines:
            work.append({"step": 1}, {})
        return Cost(seconds=0.5)

    def write(result: Cost, _work: Journal, staged: Path) -> Cost:
        file = staged
        if output.suffix != ".gguf":
            staged.mkdir()
            file = staged / "weights"
        file.write_text(WEIGHTS)
        return result

    build_folder(output, overwrite, "block", {}, run, write)


def killed_at(name: str, action: Callable[[], None]) -> None:
    """Run `action` in a process that is killed when it calls `name` of the module."""
    child = os.fork()
    if child == 0:
        setattr(result_folder, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_finished_run_leaves_its_result_alone(tmp_path: Path) -> None:
    build(tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == WEIGHTS
    timing = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert timing["seconds"] == 0.5
    assert timing["first_block_of_this_process"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_traces_of_a_run_killed_right_after_its_end_are_deleted(tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    killed_at("_discard", lambda: build(output))
    assert (output / "weights").read_text() == WEIGHTS
    assert partial.exists()
    with pytest.raises(PrunerZeroError, match="is not empty"):
        check_output(output, overwrite=False)
    assert not partial.exists()


def test_a_run_that_is_killed_before_its_result_has_moved_goes_on(tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    killed_at("_move", lambda: build(output))
    assert not output.exists()
    check_output(output, overwrite=False)
    assert (partial / "result" / "weights").exists()
    assert len(work_in(partial).lines) == 1
    build(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_beside_an_older_result_stays(tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    build(output)
    work_in(partial).append({"step": 1}, {})
    (partial / ".lock").touch()
    check_output(output, overwrite=True)
    assert len(work_in(partial).lines) == 1


def test_overwrite_replaces_an_earlier_result(tmp_path: Path) -> None:
    build(tmp_path / "out")
    (tmp_path / "out" / "weights").write_text("older")
    build(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "weights").read_text() == WEIGHTS


@pytest.mark.parametrize("timing", [None, "", "[]", '{"seconds": 1.0}', '{"files": 3}'], ids=str)
def test_overwrite_keeps_a_model_that_this_program_did_not_write(
    timing: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    if timing is not None:
        (tmp_path / "timing.json").write_text(timing)
    with pytest.raises(PrunerZeroError, match=r"has no timing.json that lists what this"):
        check_output(tmp_path, overwrite=True)
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["thesis.txt", ".git/HEAD", "notes/a/b.md"])
def test_overwrite_keeps_what_is_beside_an_earlier_result(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    build(output)
    file = output / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(PrunerZeroError, match=f"{name} was not written by this program"):
        build(output, overwrite=True)
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("source", ["out", "out/inner", "."])
def test_overwrite_keeps_what_the_command_reads(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / source)
    monkeypatch.chdir(tmp_path)
    for name in (source, tmp_path / source, "link"):
        with pytest.raises(PrunerZeroError, match="which this command reads: choose another"):
            check_output("out", overwrite=True, inputs=[None, name])
    check_output("out", overwrite=True, inputs=[None, "output", "out2", "someone/out"])


def test_a_result_inside_of_what_the_command_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(PrunerZeroError, match=r"lies in .*model, which this command reads"):
        check_output(tmp_path / "model" / "sub", overwrite=False, inputs=[tmp_path / "model"])


def test_a_run_that_fails_after_a_step_says_how_it_goes_on(tmp_path: Path) -> None:
    def run(work: Journal | None) -> Cost:
        assert work is not None
        work.append({"step": 1}, {})
        raise PrunerZeroError("choose another metric")

    with pytest.raises(PrunerZeroError) as caught:
        build_folder(tmp_path / "out", False, "block", {}, run, lambda *_: Cost(seconds=0.5))
    assert str(caught.value) == (
        f"choose another metric ({tmp_path / 'out.partial'} keeps the work up to block 1: the same "
        "command goes on from there, and --overwrite discards it)"
    )


@pytest.mark.parametrize("output", ["", ".", ".."])
def test_the_current_folder_is_not_overwritten(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PrunerZeroError, match="is the current folder"):
        check_output(output, overwrite=True)


@pytest.mark.parametrize("output", ["", "."])
def test_the_current_folder_is_not_replaced_where_it_is_empty(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrunerZeroError, match="is the current folder"):
        check_output(output, overwrite=False)


@pytest.mark.parametrize("name", ["notes.txt", "complete"])
def test_a_folder_of_the_user_that_has_the_name_of_an_unfinished_run_stays(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.partial" / name
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(PrunerZeroError, match=r"out.partial, where .* is made, holds other files"):
        check_output(tmp_path / "out", overwrite=True)
    assert file.read_text() == "mine"


def test_a_link_stays_and_the_result_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    assert check_output(tmp_path / "link", overwrite=False) == tmp_path / "disk" / "out"


@pytest.mark.parametrize(
    ("output", "words"), [("/", "is a mount point"), ("x" * 300, "file name too long")]
)
def test_a_path_that_cannot_be_is_refused(output: str, words: str) -> None:
    with pytest.raises(PrunerZeroError, match=words):
        check_output(output, overwrite=False)


def test_a_current_folder_that_was_deleted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(PrunerZeroError, match="no such file"):
        check_output("out", overwrite=False)


def test_an_unfinished_run_of_another_command_is_deleted_only_by_overwrite(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    work_in(partial, "steps").append({"step": 1}, {})
    (partial / ".lock").touch()
    with pytest.raises(PrunerZeroError, match="holds an unfinished run of another command: finish"):
        build(tmp_path / "out")
    assert len(work_in(partial, "steps").lines) == 1
    # One line also where it is damaged.
    journal = partial / "steps" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"step", b"st\xffp"))
    with pytest.raises(PrunerZeroError, match="holds an unfinished run of another command"):
        build(tmp_path / "out")
    build(tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("torn", ["", '{"step'])
def test_a_run_of_another_command_that_finished_no_step_is_not_in_the_way(
    torn: str, tmp_path: Path
) -> None:
    journal = work_in(tmp_path / "out.partial", "steps").folder / "journal.jsonl"
    journal.write_text(journal.read_text() + torn)
    (tmp_path / "out.partial" / ".lock").touch()
    build(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_gguf_file_is_a_result_of_one_file(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    for name in ("_move", "_discard"):
        killed_at(name, lambda: build(output))
        assert output.exists() == (name == "_discard")
    assert output.read_text() == WEIGHTS
    with pytest.raises(PrunerZeroError, match="exists: choose another file, or add --overwrite"):
        check_output(output, overwrite=False, gguf=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    output.write_text(f"older, {GGUF_PRUNING}")
    build(output, overwrite=True)
    assert output.read_text() == WEIGHTS


def test_a_gguf_file_of_others_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_text("mine")
    with pytest.raises(PrunerZeroError, match="was not written by this program"):
        build(output, overwrite=True)
    assert output.read_text() == "mine"
    assert os.listdir(tmp_path) == ["out.gguf"]


def test_a_folder_and_a_file_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "out.gguf").mkdir()
    (tmp_path / "out").touch()
    with pytest.raises(PrunerZeroError, match="is a folder: choose another file for the result"):
        check_output(tmp_path / "out.gguf", overwrite=True, gguf=True)
    with pytest.raises(PrunerZeroError, match="is a file: choose another folder for the result"):
        check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(PrunerZeroError, match="names a GGUF file: choose a folder"):
        check_output(tmp_path / "other.gguf", overwrite=True)
