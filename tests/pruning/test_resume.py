"""Killed at any moment and started again, `prune` ends with the same bytes; real SIGKILLs."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pruner_zero.metric.metric import Metric
from tests.conftest import save_tiny
from tests.processes import Forked, finish, start

CHANGED = "the model, a text or the configuration changes under an unfinished run"
# Long enough to be hit in the middle, with a process that starts in an instant.
WINDOWS, SEQLEN, BLOCKS = 40, 48, 6

RUNS = {
    "sequential": ["--metric", "gblm+obs", "--sparsity", "0.5"],
    "sparsegpt": ["--metric", "sparsegpt", "--pattern", "2:4"],
    "one-shot": ["--metric", "wanda", "--sparsity", "0.5"],
    "offloaded": ["--metric", "wanda+obs", "--sparsity", "0.5", "--offload"],
    "global": ["--metric", "W * G", "--sparsity", "0.5", "--scope", "global"],
    "channels": [
        *("--metric", "wanda", "--structure", "channels"),
        *("--sparsity", "0.34"),
    ],
}


pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with enough blocks to be stopped between them."""
    return save_tiny(tmp_path_factory.mktemp("models") / "deep", blocks=BLOCKS)


@pytest.fixture(scope="module")
def command(deep_folder: Path, text_file: Path) -> Callable[[str, Path], list[object]]:
    """The whole command of one of the RUNS for an output; its statistics lie beside that."""

    def arguments(run: str, output: Path) -> list[object]:
        calibration = ["--calibration", text_file, "--windows", WINDOWS, "--seqlen", SEQLEN]
        places = ["-o", output, "--cache", output.parent / "cache"]
        return ["prune", deep_folder, *RUNS[run], *calibration, *places]

    return arguments


Command = Callable[[str, Path], list[object]]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but timing.json."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "timing.json"
    }


Undisturbed = Callable[[str], tuple[dict[str, bytes], float]]


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The files of one uninterrupted run of the RUNS, and the seconds that it took."""

    @cache
    def finished(run: str) -> tuple[dict[str, bytes], float]:
        folder = tmp_path_factory.mktemp("undisturbed")
        begin = time.monotonic()
        assert Forked(*command(run, folder / "out"), log=folder / "log").end() == 0
        seconds = time.monotonic() - begin
        assert set(os.listdir(folder)) - {"cache"} == {"log.err", "log.out", "out"}
        return contents(folder / "out"), seconds

    return finished


def written_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.fault("SIGKILL at a random moment of search, prune, offloaded gradients, recover")
@pytest.mark.parametrize(
    "run",
    [
        "sequential",
        *(pytest.param(run, marks=pytest.mark.slow) for run in ("sparsegpt", "one-shot", "global")),
    ],
)
def test_ten_kills_change_no_byte(
    run: str, command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, seconds = undisturbed(run)
    generator = random.Random(run)
    folder = tmp_path / "killed"
    folder.mkdir()
    output = folder / "out"
    journal = folder / "out.partial" / "blocks" / "journal.jsonl"
    moments: list[str] = []
    for attempt in range(10):
        process = Forked(*command(run, output), log=folder / "log")
        if attempt:
            time.sleep(generator.uniform(0.1, seconds))
        if attempt == 5 and run in ("sequential", "sparsegpt"):
            # On a machine that became busier, all moments may come before the first block.
            while process.process.is_alive() and written_lines(journal) < 2:
                time.sleep(0.001)
        process.kill()
        if output.exists():
            # It was done before the kill: the same work again, to be hit earlier.
            assert contents(output) == whole
            moments.append("done")
            output.rename(folder / f"done-{len(moments)}")
            continue
        moments.append(str(written_lines(journal)))
    last = Forked(*command(run, output), log=folder / "log")
    assert last.end() == 0, last.err.read_text()
    assert contents(output) == whole, moments
    assert not (folder / "out.partial").exists()
    if run in ("sequential", "sparsegpt"):
        # Their work is spread over the blocks, and so must the kills be.
        assert len(set(moments)) > 1, "the kills all fell on one moment"


@pytest.mark.fault(
    "SIGKILL after each block, during the final save, and while a file is written",
    "the output is whole or not there; the same command ends with the same bytes",
)
@pytest.mark.parametrize(
    "run",
    [pytest.param("sparsegpt", marks=pytest.mark.slow), "channels"],
)
def test_a_kill_after_every_block_changes_no_byte(
    run: str, command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, _ = undisturbed(run)
    folder = tmp_path / "killed"
    folder.mkdir()
    journal = folder / "out.partial" / "blocks" / "journal.jsonl"
    for block in range(1, BLOCKS):
        process = Forked(*command(run, folder / "out"), log=folder / "log")
        while not journal.exists() or journal.read_bytes().count(b"\n") < block + 1:
            assert process.process.is_alive() or (folder / "out").exists()
            time.sleep(0.001)
        process.kill()
    last = Forked(*command(run, folder / "out"), log=folder / "log")
    assert last.end() == 0
    assert "going on after block" in last.err.read_text()
    assert contents(folder / "out") == whole
    timing = json.loads((folder / "out" / "timing.json").read_text())
    assert timing["first_block_of_this_process"] >= BLOCKS - 1


@pytest.mark.fault("SIGKILL after each block, during the final save, and while a file is written")
def test_a_kill_during_the_final_save_leaves_no_half_model(
    command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, _ = undisturbed("one-shot")
    folder = tmp_path / "killed"
    folder.mkdir()
    output, staged = folder / "out", folder / "out.partial" / "result"
    signs = ["", "model.safetensors", "README.md"]
    halves = 0
    for sign in signs:
        process = Forked(*command("one-shot", output), log=folder / "log")
        while not (staged / sign).exists() and process.process.is_alive():
            pass
        process.kill()
        if output.exists():
            assert contents(output) == whole
            output.rename(folder / f"done-{sign}")
        else:
            halves += 1
    last = Forked(*command("one-shot", output), log=folder / "log")
    assert last.end() == 0
    assert contents(output) == whole
    assert halves, "no kill came in time"


@pytest.fixture(scope="module")
def killed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sequential run that was killed after its second block."""
    folder = tmp_path_factory.mktemp("killed")
    stop_in_the_middle(command("sequential", folder / "out"), folder)
    assert not (folder / "out").exists()
    return folder


@pytest.fixture
def stopped(killed: Path, tmp_path: Path) -> Path:
    """The output of that run, in a copy of its folder."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def stop_in_the_middle(arguments: list[object], folder: Path) -> None:
    """Kill a command that prunes into `folder`/out after its second block."""
    journal = folder / "out.partial" / "blocks" / "journal.jsonl"
    process = Forked(*arguments, log=folder / "log")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        time.sleep(0.001)
    process.kill()


def error_of(process: Forked) -> str:
    """The one error line that ends a refused command, after the notes of what was to be done."""
    assert process.end() == 2
    lines = process.err.read_text().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], lines
    assert process.out.read_text() == ""
    return lines[-1]


def test_an_unfinished_run_of_other_settings_only_gives_way_to_overwrite(
    stopped: Path, command: Command
) -> None:
    log = stopped.parent / "log"
    before = contents(stopped.parent / "out.partial")
    reseeded = [*command("sequential", stopped), "--seed", 1]
    line = error_of(Forked(*reseeded, log=log))
    changed = "(--seed, the calibration tokens changed)"
    assert f"holds an unfinished run with other settings {changed}: finish that run" in line
    assert "--overwrite" in line
    assert contents(stopped.parent / "out.partial") == before
    process = Forked(*reseeded, "--overwrite", log=log)
    assert process.end() == 0
    assert "going on" not in process.err.read_text()
    assert json.loads((stopped / "pruning.json").read_text())["settings"]["seed"] == 1
    assert not (stopped.parent / "out.partial").exists()


@pytest.mark.fault(CHANGED, "refused in one line that names what changed; nothing is touched")
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("model", "the model's weights"),
        ("text", "the calibration tokens"),
        ("configuration", "--exclude"),
        ("tree", "the metric"),
    ],
)
def test_a_change_under_an_unfinished_run_is_named(
    what: str, named: str, text_file: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", blocks=BLOCKS)
    text, tree, config = (tmp_path / name for name in ("text.txt", "tree.json", "run.yaml"))
    text.write_text(text_file.read_text())
    tree.write_text(Metric.of("gblm").to_json())
    config.write_text("exclude: []\n")
    arguments = ["prune", model, "--metric", f"{tree}+obs", "--sparsity", "0.5"]
    arguments += ["--config", config]
    arguments += ["--calibration", text, "--windows", WINDOWS, "--seqlen", SEQLEN]
    arguments += ["-o", tmp_path / "out", "--cache", tmp_path / "cache"]
    stop_in_the_middle(arguments, tmp_path)
    before = contents(tmp_path / "out.partial")
    if what == "model":
        save_tiny(model, seed=1, blocks=BLOCKS)
    elif what == "text":
        text.write_text(text_file.read_text()[::-1])
    elif what == "configuration":
        config.write_text("exclude: ['*.0.mlp.*']\n")
    else:
        tree.write_text(Metric.of("wanda").to_json())
    line = error_of(Forked(*arguments, log=tmp_path / "log"))
    assert f"holds an unfinished run with other settings ({named} changed): " in line
    assert contents(tmp_path / "out.partial") == before


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
@pytest.mark.parametrize(
    "name", ["weights-0000.safetensors", "weights-0001.safetensors", "journal.jsonl"]
)
def test_a_damaged_checkpoint_is_refused_and_overwrite_starts_afresh(
    name: str, stopped: Path, command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    blocks = stopped.parent / "out.partial" / "blocks"
    file = blocks / name
    data = bytearray(file.read_bytes())
    # In the journal, a digit of a record of the first block: still JSON, and no longer true.
    place = data.index(b'"zeros": ') + 9 if name == "journal.jsonl" else len(data) // 2
    data[place] ^= 1
    file.write_bytes(data)
    log = stopped.parent / "log"
    line = error_of(Forked(*command("sequential", stopped), log=log))
    assert f"{file} is damaged" in line
    assert "--overwrite" in line
    process = Forked(*command("sequential", stopped), "--overwrite", log=log)
    assert process.end() == 0, process.err.read_text()
    whole, _ = undisturbed("sequential")
    assert contents(stopped) == whole


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_damaged_activations_of_an_offloaded_model_are_refused(
    command: Command, tmp_path: Path
) -> None:
    arguments = command("offloaded", tmp_path / "out")
    stop_in_the_middle(arguments, tmp_path)
    file = max((tmp_path / "out.partial" / "blocks").glob("hidden-0*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    line = error_of(Forked(*arguments, log=tmp_path / "log"))
    assert f"{file} is damaged" in line
    assert "--overwrite" in line


def test_the_activations_of_a_model_in_memory_are_not_written(stopped: Path) -> None:
    blocks = stopped.parent / "out.partial" / "blocks"
    assert {file.name.partition("-")[0] for file in blocks.iterdir()} == {
        "journal.jsonl",
        "weights",
    }


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_missing_checkpoint_file_is_refused(stopped: Path, command: Command) -> None:
    (stopped.parent / "out.partial" / "blocks" / "weights-0000.safetensors").unlink()
    assert "is damaged" in error_of(
        Forked(*command("sequential", stopped), log=stopped.parent / "log")
    )


def test_a_run_stopped_before_its_first_block_does_not_block_another(
    stopped: Path, command: Command
) -> None:
    journal = stopped.parent / "out.partial" / "blocks" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    process = Forked(*command("sequential", stopped), "--seed", 1, log=stopped.parent / "log")
    assert process.end() == 0
    assert json.loads((stopped / "pruning.json").read_text())["settings"]["seed"] == 1


@pytest.mark.fault("a second process on one run folder or one cache entry")
def test_the_second_of_two_processes_on_one_output_is_refused(
    command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = Forked(*command("sequential", output), log=tmp_path / "first")
    lock = tmp_path / "out.partial" / "blocks" / "journal.jsonl"
    while not lock.exists():
        time.sleep(0.001)
    os.kill(first.process.pid or 0, signal.SIGSTOP)
    line = error_of(Forked(*command("sequential", output), log=tmp_path / "second"))
    assert "another process is working in" in line
    os.kill(first.process.pid or 0, signal.SIGCONT)
    assert first.end() == 0
    assert (output / "model.safetensors").exists()


@pytest.mark.fault(
    "Ctrl-C", "one line that says how to go on; the same command ends with the same result"
)
def test_ctrl_c_ends_with_130_and_one_line_and_the_same_command_goes_on(
    command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, _ = undisturbed("sequential")
    (tmp_path / "stopped").mkdir()
    output = tmp_path / "stopped" / "out"
    journal = tmp_path / "stopped" / "out.partial" / "blocks" / "journal.jsonl"
    process = start(*command("sequential", output))
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted: the same command continues this run"
    assert not output.exists()
    last = Forked(*command("sequential", output), log=tmp_path / "log")
    assert last.end() == 0
    assert last.out.read_text().startswith(
        f"{output}: 50.00% of the weights of 42 matrices are zero"
    )
    assert contents(output) == whole


@pytest.mark.fault("SIGKILL at a random moment of search, prune, offloaded gradients, recover")
@pytest.mark.slow
@pytest.mark.parametrize("run", ["one-shot", "sequential", "sparsegpt"])
def test_ten_kills_of_the_real_command_change_no_byte(
    run: str, command: Command, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, _ = undisturbed(run)
    generator = random.Random(run)
    folder = tmp_path / "killed"
    folder.mkdir()
    output = folder / "out"
    kills = 0
    for _ in range(10):
        process = start(*command(run, output))
        while not (folder / "out.partial").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.4))
        process.kill()
        finish(process)
        kills += not output.exists()
        if output.exists():
            output.rename(folder / f"done-{kills}-{generator.random()}")
    code, _, err = finish(start(*command(run, output)))
    assert code == 0, err
    assert contents(output) == whole
    assert kills >= 3
