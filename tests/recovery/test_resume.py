"""Killed at any moment and started again, a recovery ends with the same weights; real SIGKILLs."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pruner_zero.journal import Journal
from pruner_zero.progress import Progress, reported_to
from pruner_zero.recovery.recover import recover
from pruner_zero.text.corpus import Corpus
from pruner_zero.training.train import State
from tests.conftest import save_tiny
from tests.processes import Forked
from tests.recovery.conftest import save_compact, save_pruned
from tests.text.refusals import refusal

STEPS = 24


pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step, so that a run that is stopped early has a checkpoint."""
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model that takes long enough to be hit."""
    return save_pruned(tmp_path_factory.mktemp("models") / "deep", blocks=4)


def command(model: Path, text: Path, output: Path, *more: object) -> list[object]:
    sizes = ["--steps", STEPS, "--seqlen", 32, "--validation-windows", 2]
    return ["recover", model, "--text", text, "-o", output, *sizes, *more]


def check_same(folder: Path, expected: Path) -> None:
    for name in ("model.safetensors", "config.json", "recovery.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def steps_on_disk(output: Path) -> int:
    """The step of the last whole checkpoint, −1 where there is none."""
    journal = output.with_name(output.name + ".partial") / "steps" / "journal.jsonl"
    data = journal.read_bytes() if journal.exists() else b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()[1:]
    return int(json.loads(lines[-1])["state"]["step"]) if lines else -1


@pytest.mark.fault("SIGKILL at a random moment of search, prune, offloaded gradients, recover")
def test_kills_change_no_byte(deep_folder: Path, text_file: Path, tmp_path: Path) -> None:
    more = ["--text", "builtin:pydoc=2"]
    whole, output = tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    assert Forked(*command(deep_folder, text_file, whole, *more), log=tmp_path / "log").end() == 0
    seconds = time.monotonic() - began
    generator = random.Random(0)
    reached = []
    for attempt in range(5):
        process = Forked(*command(deep_folder, text_file, output, *more), log=tmp_path / "log")
        time.sleep(generator.uniform(0.2, 0.6) * seconds)
        if attempt % 4 == 0:
            # On a machine that became busier, all moments may come before the first step.
            while process.process.is_alive() and steps_on_disk(output) < attempt + 1:
                time.sleep(0.001)
        process.kill()
        if output.exists():
            break
        reached.append(steps_on_disk(output))
    assert reached == sorted(reached)
    assert any(0 < step < STEPS for step in reached), "no kill fell into the training"
    if not output.exists():
        last = Forked(*command(deep_folder, text_file, output, *more), log=tmp_path / "log")
        assert last.end() == 0, last.err.read_text()
        assert f"going on after step {reached[-1]} in {output}.partial" in last.err.read_text()
    else:
        # It was done, perhaps all but for the traces of its work: they go with the next call.
        last = Forked(*command(deep_folder, text_file, output, *more), log=tmp_path / "log")
        assert last.end() == 2
        assert "is not empty" in last.err.read_text()
    check_same(output, whole)
    assert not output.with_name("out.partial").exists()


@pytest.mark.fault("Ctrl-C")
def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(
    deep_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    process = Forked(*command(deep_folder, text_file, output), log=log)
    while steps_on_disk(output) < 2:
        assert process.process.is_alive()
        time.sleep(0.002)
    os.kill(process.process.pid or 0, signal.SIGINT)
    assert process.end() == 130
    assert process.out.read_text() == ""
    lines = process.err.read_text().splitlines()
    assert lines[-1] == "interrupted: the same command continues this run"
    assert not output.exists()
    reached = steps_on_disk(output)
    assert reached >= 2
    again = Forked(*command(deep_folder, text_file, output), log=log)
    assert again.end() == 0
    assert f"going on after step {reached} in {output}.partial" in again.err.read_text()
    assert output.exists()


def stopped_run(model: Path, prose: str, output: Path, **more: Any) -> dict[str, Any]:
    """Stop a run in its fourth step; return its options."""
    options: dict[str, Any] = {"steps": 8, "seqlen": 16, **more}

    class Stopping(Progress):
        def note(self, line: str) -> None:
            if line.startswith("step 4,"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reported_to(Stopping()):
        recover(model, text=Corpus("prose", prose), output=output, **options)
    return options


def test_other_settings_do_not_take_up_the_run(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(pruned_folder, prose, output)
    assert steps_on_disk(output) == 3
    changed: dict[str, dict[str, Any]] = {
        "--seed": {"seed": 1},
        "the tokens of the text": {"text": Corpus("prose", prose + " and more of it")},
    }
    for named, change in changed.items():
        attempt = partial(
            recover, pruned_folder, output=output, **{"text": text, **options, **change}
        )
        line = refusal(attempt)
        assert f"holds an unfinished run with other settings ({named} changed): finish" in line
    assert steps_on_disk(output) == 3
    result = recover(pruned_folder, text=text, output=output, overwrite=True, **options, seed=1)
    assert result.settings.seed == 1
    assert json.loads((output / "timing.json").read_text())["first_step_of_this_process"] == 0


@pytest.mark.fault("the model, a text or the configuration changes under an unfinished run")
def test_a_model_that_changed_meanwhile_is_named(prose: str, tmp_path: Path) -> None:
    model, output = save_pruned(tmp_path / "model"), tmp_path / "out"
    options = stopped_run(model, prose, output)
    weights = model / "model.safetensors"
    save_file(
        {name: tensor / 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"}
    )
    line = refusal(partial(recover, model, text=Corpus("prose", prose), output=output, **options))
    assert "with other settings (the model's weights changed): finish that run" in line
    assert steps_on_disk(output) == 3


def test_a_smaller_model_goes_on_with_its_teacher(
    llama_folder: Path, prose: str, tmp_path: Path
) -> None:
    compact = save_compact(tmp_path / "compact", prose, "channels", llama_folder)
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(compact, prose, output, teacher=llama_folder)
    assert steps_on_disk(output) == 3
    changed = {**options, "teacher": save_tiny(tmp_path / "other", seed=1)}
    line = refusal(partial(recover, compact, text=text, output=output, **changed))
    assert "the teacher's weights changed" in line
    for folder in (output, tmp_path / "whole"):
        recover(compact, text=text, output=folder, **options)
    assert json.loads((output / "timing.json").read_text())["first_step_of_this_process"] == 3
    check_same(output, tmp_path / "whole")


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


def test_a_run_that_goes_on_waits_for_its_next_checkpoint(
    pruned_folder: Path, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(pruned_folder, prose, output)
    # As if the steps before had taken an hour.
    earlier = State.from_json

    def slow(value: dict[str, Any]) -> State:
        return replace(earlier(value), seconds=3600.0)

    steps: list[int] = []
    append = Journal.append

    def noted(self: Journal, line: dict[str, Any], *rest: Any) -> None:
        steps.append(line["finished"])
        append(self, line, *rest)

    monkeypatch.setattr(State, "from_json", slow)
    monkeypatch.setattr(Journal, "append", noted)
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 1800.0)
    recover(pruned_folder, text=text, output=output, **options)
    assert steps == [8]


def test_a_run_that_goes_on_does_not_get_its_spent_minutes_back(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    output, text = tmp_path / "out", Corpus("prose", prose)
    options = stopped_run(pruned_folder, prose, output)
    journal = tmp_path / "out.partial" / "steps" / "journal.jsonl"
    spent = json.loads(journal.read_text().splitlines()[-1])["state"]["seconds"]
    result = recover(pruned_folder, text=text, output=output, **options)
    seconds = [point.seconds for point in result.curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] > spent
