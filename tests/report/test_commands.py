"""The commands of a report: options that exist, values that come back, results that repeat."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pruner_zero.cli import evaluate_command as compare_verb
from pruner_zero.cli import prune_command as prune_verb
from pruner_zero.cli import search_command as search_verb
from pruner_zero.evolution.study import Study
from pruner_zero.pruning.notation import parse_recipe, split_methods
from pruner_zero.report import commands
from pruner_zero.report.results import read_result
from pruner_zero.sparsity.least_squares import COLUMNS
from tests.report.conftest import (
    SETTINGS,
    write_comparison,
    write_evaluation,
    write_prune,
    write_recovery,
    write_search,
)

VERBS: dict[str, Callable[..., None]] = {
    "search": search_verb.search,
    "prune": prune_verb.prune,
    "compare": compare_verb.compare,
}


def options(command: str | None) -> dict[str, list[str]]:
    """The values of each option of a command."""
    assert command is not None
    words = shlex.split(command)[3:]
    values: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        values.setdefault(name, []).append(value)
    return values


def search_run(folder: Path, **settings: Any) -> Study:
    return Study.open(write_search(folder, **settings))


def test_the_command_that_repeats_a_search(run: Path) -> None:
    command = commands.repeat(read_result(run))
    assert command is not None
    assert command.startswith("pruner-zero search models/tiny --")
    assert options(command) == {
        "--search-text": ["other.txt"],
        "--evaluations": ["4"],
        "--calibration": ["words.txt"],
        "--sparsity": ["0.5"],
        "-o": [f"{run}-again"],
    }


def test_settings_without_an_option_stand_in_a_file(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "seed": 3,
        "final_windows": 4,
        "include": ["*.q", "*.k"],
        "algorithm_settings": {"batch": 16},
        "model": "a model's; rm -rf *",
    }
    command = commands.repeat(search_run(tmp_path, **settings))
    assert command is not None
    file, _, line = command.partition("END\npruner-zero")
    assert file.startswith("cat > settings.yaml <<'END'\n")
    written = yaml.safe_load(file.split("\n", 1)[1])
    assert written == {"algorithm_settings": {"batch": 16}}
    words = shlex.split("pruner-zero" + line)
    assert words[:3] == ["pruner-zero", "search", "a model's; rm -rf *"]
    values = options("pruner-zero" + line)
    assert values["--include"] == ["*.q", "*.k"]
    assert (values["--seed"], values["--final-windows"]) == (["3"], ["4"])
    assert values["--config"] == ["settings.yaml"]


def test_values_whose_default_depends_on_other_settings_are_stated(tmp_path: Path) -> None:
    """Without a length, 96 windows of 256 tokens are the default if the model writes the text."""
    settings = {**SETTINGS, "calibration": None, "metric": "wanda", "windows": 24, "seqlen": 1024}
    pruned = read_result(write_prune(tmp_path / "pruned", settings=settings))
    assert options(commands.repeat(pruned))["--seqlen"] == ["1024"]
    units = {"structure": "channels"}
    run = search_run(tmp_path / "run", **units, calibration="self", windows=24, seqlen=1024)
    assert options(commands.prune_with(run))["--seqlen"] == ["1024"]


@pytest.mark.parametrize(
    ("settings", "written", "absent"),
    [
        ({"gradient_seqlen": 64}, "--metric wanda -o", "gradient"),
        ({"device": "cuda:7"}, "--device cuda:7", ""),
        ({"offload": True, "mode": "one-shot"}, "--metric wanda --offload -o", "--mode"),
        (
            {"calibration": {"words.txt": 0.5, "self": 2.0}},
            "words.txt=0.5 --calibration self=2",
            "",
        ),
    ],
    ids=["unknown to this version", "a missing device", "an option without a value", "a mixture"],
)
def test_the_words_of_a_setting(
    settings: dict[str, Any], written: str, absent: str, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "metric": "wanda", **settings}
    command = commands.repeat(read_result(write_prune(tmp_path, settings=settings)))
    assert command is not None
    assert written in command
    assert not absent or absent not in command


def test_the_commands_that_repeat_a_prune_and_a_comparison(tmp_path: Path) -> None:
    pruned = read_result(write_prune(tmp_path / "pruned"))
    assert options(commands.repeat(pruned)) == {
        "--calibration": ["words.txt"],
        "--sparsity": ["0.5"],
        "--metric": ["wanda"],
        "--scope": ["row"],
        "-o": [str(tmp_path / "pruned-again")],
    }
    table = read_result(write_comparison(tmp_path / "table.json", pattern="2:4", sparsity=None))
    values = options(commands.repeat(table))
    assert (values["--pattern"], values["--text"]) == (["2:4"], ["test.txt"])
    assert values["--methods"] == ["dense,wanda,mine,ria"]
    assert values["-o"] == [str(tmp_path / "table-again.json")]


def test_the_commands_that_follow_a_search(run: Path) -> None:
    study = Study.open(run)
    assert options(commands.prune_with(study)) == {
        "--metric": [str(run / "best.json")],
        "--calibration": ["words.txt"],
        "--sparsity": ["0.5"],
        "-o": [f"{run}-pruned"],
    }
    compared = options(commands.compare_with(study))
    assert compared["--methods"][0].endswith(",sparsegpt,W * G * X@global")
    assert compared["--text"] == ["TEXT"]
    assert compared["-o"] == [str(run / "comparison.json")]


def test_the_following_commands_prune_the_matrices_of_the_search(tmp_path: Path) -> None:
    study = search_run(tmp_path / "run", include=["*.q", "*.k"], exclude=["*.0.*"], model="a b")
    command = commands.prune_with(study)
    assert command.startswith("pruner-zero prune 'a b' --")
    assert options(command)["--include"] == ["*.q", "*.k"]
    assert options(command)["--exclude"] == ["*.0.*"]


def test_the_following_commands_remove_whole_units_as_the_search_did(run: Path) -> None:
    study = Study.open(run)
    units = {"structure": "channels", "sparsity": 0.25}
    removed = replace(study, settings={**study.settings, **units})
    assert options(commands.prune_with(removed))["--structure"] == ["channels"]
    methods = split_methods(options(commands.compare_with(removed))["--methods"][0])
    metrics = ("magnitude", "wanda", "W * G * X")
    assert methods == ["dense", *(f"{name}@channels" for name in metrics)]
    assert parse_recipe(methods[2], sparsity=0.25).update == COLUMNS


def test_the_command_that_repeats_a_recovery(tmp_path: Path) -> None:
    folder = write_recovery(tmp_path / "out", teacher="models/tiny")
    command = commands.repeat(read_result(folder))
    assert command is not None
    assert command.startswith("pruner-zero recover models/pruned --")
    assert options(command) == {
        "--text": ["words.txt"],
        "--minutes": ["1.0"],
        "--teacher": ["models/tiny"],
        "-o": [f"{folder}-again"],
    }


def test_a_metric_with_a_comma_and_a_corpus_with_parts_are_compared(tmp_path: Path) -> None:
    judged = [("max(W, G)", "row", {"all": 4.0})]
    run = search_run(tmp_path, judged=judged, search_text="builtin:pydoc")
    compared = options(commands.compare_with(run))
    assert split_methods(compared["--methods"][0])[-1] == "max(W, G)@row"
    assert compared["--text"] == ["builtin:pydoc"]


def test_strings_have_no_name_and_measurements_no_command(tmp_path: Path) -> None:
    """What evaluate writes does not hold its settings."""
    assert commands.repeat(read_result(write_evaluation(tmp_path / "m.json"))) is None
    assert commands.repeatable(search_run(tmp_path / "files"))
    mixed = search_run(tmp_path / "mixed", calibration={"(strings)": 1.0, "self": 1.0})
    assert not commands.repeatable(mixed)
    assert not commands.repeatable(search_run(tmp_path / "strings", calibration="(strings)"))


@pytest.mark.parametrize("name", [".", ".."])
def test_a_result_in_the_current_folder_is_named_by_its_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_search(tmp_path / "run")
    (run / "inside").mkdir()
    monkeypatch.chdir(run / "inside" if name == ".." else run)
    result = Study.open(Path(name))
    assert options(commands.repeat(result))["-o"] == [f"{run}-again"]
    assert options(commands.prune_with(result))["-o"] == [f"{run}-pruned"]
