"""Stopped at any moment and started again, a training ends with the same weights; real signals."""

import json
import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pruner_zero.progress import reported_to
from pruner_zero.recovery.recover import recover
from pruner_zero.text.corpus import Corpus
from tests.conftest import save_tiny
from tests.processes import Forked
from tests.recovery.conftest import Stopping, save_compact, save_pruned
from tests.text.refusals import refusal

STEPS = 24

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model that takes long enough to be hit."""
    return save_pruned(tmp_path_factory.mktemp("models") / "deep", blocks=4)


def command(model: Path, text: Path, output: Path, *more: object) -> list[object]:
    sizes = ["--steps", STEPS, "--seqlen", 32]
    return ["recover", model, "--text", text, "-o", output, *sizes, *more]


def check_same(folder: Path, expected: Path, record: str = "recovery.json") -> None:
    for name in ("model.safetensors", "config.json", record):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def steps_on_disk(output: Path) -> int:
    """The step of the last whole checkpoint, −1 where there is none."""
    folder = output.with_name(output.name + ".partial")
    steps = -1
    for journal in folder.glob("**/steps/journal.jsonl"):
        data = journal.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines()[1:]
        steps = int(json.loads(lines[-1])["state"]["step"]) if lines else -1
    return steps


@pytest.mark.fault("SIGKILL at a random moment of search, prune, offloaded gradients, recover")
def test_kills_change_no_byte(deep_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """With a checkpoint after every step, which `Forked` sets."""
    more = ["--text", "builtin:pydoc=2"]
    whole, output = tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    assert Forked(*command(deep_folder, text_file, whole, *more), log=tmp_path / "log").end() == 0
    seconds = time.monotonic() - began
    generator = random.Random(0)
    reached = []
    for attempt in range(3):
        process = Forked(*command(deep_folder, text_file, output, *more), log=tmp_path / "log")
        time.sleep(generator.uniform(0.2, 0.6) * seconds)
        if attempt % 2 == 0:
            # On a machine that became busier, all moments may come before the first step.
            while process.process.is_alive() and steps_on_disk(output) < attempt + 1:
                time.sleep(0.001)
        process.kill()
        if output.exists():
            break
        reached.append(steps_on_disk(output))
    assert reached == sorted(reached)
    assert any(0 < step < STEPS for step in reached), "no kill fell into the training"
    last = Forked(*command(deep_folder, text_file, output, *more), log=tmp_path / "log")
    if output.exists():
        # It was done, perhaps all but for the traces of its work: they go with the next call.
        assert last.end() == 2
        assert "is not empty" in last.err.read_text()
    else:
        assert last.end() == 0, last.err.read_text()
        assert f"going on after step {reached[-1]} in {output}.partial" in last.err.read_text()
    check_same(output, whole)
    assert not output.with_name("out.partial").exists()


# The command line with checkpoints as seldom as a user has them. It tells of each step.
ORDINARY = """
import sys
from pruner_zero.cli.app import main
from pruner_zero.training.train import Training

def told(training, batch, step=Training._step):
    print("after step", training.state.step, file=sys.stderr, flush=True)
    return step(training, batch)

Training._step = told
main()
"""


@pytest.mark.fault("Ctrl-C")
@pytest.mark.parametrize("verb", ["recover", "prune"])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    verb: str, deep_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Long before a checkpoint is due, in training a model and in a distillation after pruning."""
    script = tmp_path / "cli.py"
    script.write_text(ORDINARY)

    def run(output: Path, log: str) -> Forked:
        words = command(deep_folder, text_file, output)
        if verb == "prune":
            sizes = ("--windows", 4, "--seqlen", 32, "--sparsity", 0.5, "--distill", STEPS)
            words = [verb, deep_folder, "--metric", "wanda", *sizes, "-o", output]
            words += ["--calibration", text_file]
        return Forked(*words, log=tmp_path / log, script=script)

    whole, output = tmp_path / "whole", tmp_path / "out"
    assert run(whole, "first").end() == 0
    process = run(output, "second")
    while not process.err.exists() or "after step 3" not in process.err.read_text():
        assert process.process.is_alive()
        time.sleep(0.002)
    os.kill(process.process.pid or 0, signal.SIGINT)
    assert process.end() == 130
    assert process.out.read_text() == ""
    lines = process.err.read_text().splitlines()
    assert lines[-1] == "interrupted: the same command continues this run"
    assert not output.exists()
    reached = steps_on_disk(output)
    assert 3 < reached < STEPS
    again = run(output, "third")
    assert again.end() == 0
    told = again.err.read_text()
    assert re.findall("after step ([0-9]+)$", told, re.MULTILINE)[0] == str(reached)
    assert verb == "prune" or f"going on after step {reached} in {output}.partial" in told
    check_same(output, whole, "recovery.json" if verb == "recover" else "pruning.json")


def stopped_run(model: Path, prose: str, output: Path, **more: Any) -> dict[str, Any]:
    """Stop a run after its fourth step; return its options."""
    options: dict[str, Any] = {"steps": 8, "seqlen": 16, **more}
    with pytest.raises(KeyboardInterrupt), reported_to(Stopping()):
        recover(model, text=Corpus("prose", prose), output=output, **options)
    assert steps_on_disk(output) == 4
    return options


def first_step(output: Path) -> int:
    """The step at which the process that finished a run began."""
    return int(json.loads((output / "timing.json").read_text())["first_step_of_this_process"])


@pytest.mark.fault("the model, a text or the configuration changes under an unfinished run")
def test_other_settings_do_not_take_up_the_run(prose: str, tmp_path: Path) -> None:
    model, teacher = save_pruned(tmp_path / "model"), save_tiny(tmp_path / "teacher")
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = {"text": text, **stopped_run(model, prose, output, teacher=teacher)}

    def refused(named: str, **changed: Any) -> None:
        line = refusal(partial(recover, model, output=output, **{**options, **changed}))
        assert f"holds an unfinished run with other settings ({named} changed): finish" in line
        assert steps_on_disk(output) == 4

    refused("--seed", seed=1)
    refused("the tokens of the text", text=Corpus("prose", prose + " and more of it"))
    save_tiny(teacher, seed=1)
    refused("the teacher's weights")
    save_tiny(teacher)
    weights = model / "model.safetensors"
    halved = {name: tensor / 2 for name, tensor in load_file(weights).items()}
    save_file(halved, weights, {"format": "pt"})
    refused("the model's weights")
    result = recover(model, output=output, overwrite=True, **{**options, "seed": 1})
    assert result.settings.seed == 1
    assert first_step(output) == 0


def test_a_smaller_model_goes_on_with_its_teacher_and_its_minutes(
    llama_folder: Path, prose: str, tmp_path: Path
) -> None:
    compact = save_compact(tmp_path / "compact", prose, "channels", llama_folder)
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(compact, prose, output, teacher=llama_folder)
    journal = tmp_path / "out.partial" / "steps" / "journal.jsonl"
    spent = json.loads(journal.read_text().splitlines()[-1])["state"]["seconds"]
    for folder in (output, tmp_path / "whole"):
        result = recover(compact, text=text, output=folder, **options)
        seconds = [point.seconds for point in result.curve]
        assert seconds == sorted(seconds)
        assert folder != output or seconds[-1] > spent
    assert first_step(output) == 4
    check_same(output, tmp_path / "whole")


def test_minutes_that_have_passed_count_after_an_interruption(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    output, journal = tmp_path / "out", tmp_path / "out.partial" / "steps" / "journal.jsonl"
    options = stopped_run(pruned_folder, prose, output, minutes=60)
    spent = json.loads(journal.read_text().splitlines()[-1])["state"]["seconds"]
    recover(pruned_folder, text=Corpus("prose", prose), output=output, **options)
    curve = json.loads((output / "recovery.json").read_text())["curve"]
    seconds = [point["seconds"] for point in curve]
    assert seconds == sorted(seconds)
    assert seconds[0] < spent < seconds[-1]
    assert (first_step(output), curve[-1]["step"]) == (4, 8)


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
def test_a_damaged_checkpoint_is_refused_and_overwrite_starts_afresh(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(pruned_folder, prose, output)
    file = next((tmp_path / "out.partial" / "steps").glob("state-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    line = refusal(lambda: recover(pruned_folder, text=text, output=output, **options))
    assert f"{file} is damaged" in line
    assert "--overwrite" in line
    recover(pruned_folder, text=text, output=output, overwrite=True, **options)
    assert not (tmp_path / "out.partial").exists()
