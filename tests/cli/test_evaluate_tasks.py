"""`evaluate --tasks`: a table that names every column, one JSON value, one line for an error."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.measuring.local_task import QUESTIONS, write_task


@pytest.fixture
def arguments(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "tasks").mkdir()
    folder = write_task(tmp_path / "tasks")
    return ["evaluate", llama_folder, "--tasks", "kinds", "--include-path", folder]


def test_the_table_has_each_metric_beside_its_standard_error(
    cli: Cli, arguments: list[object]
) -> None:
    (result,) = json.loads(cli(*arguments, "--json").out)["tasks"]
    outcome = cli(*arguments)
    assert outcome.code == 0
    assert outcome.out.isascii()
    header, row, remark = outcome.out.splitlines()
    metrics = ["acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "prob", "prob_stderr"]
    assert header.split() == ["task", "version", "num_fewshot", "documents", *metrics]
    numbers = [f"{result[name]:.4f}" for name in metrics]
    assert row.split() == ["kinds", "1.5", "0", str(len(QUESTIONS)), *numbers]
    assert remark.startswith("acc takes the choice of the highest log-probability")


def test_answers_beside_those_of_another_model(
    cli: Cli, arguments: list[object], llama_folder: Path
) -> None:
    header, row, *_, remark = cli(*arguments, "--beside", llama_folder).out.splitlines()
    assert header.split()[-4:] == ["gain", "gain_stderr", "moved", "moved_stderr"]
    assert row.split()[-4:] == ["0.0000"] * 4
    assert remark.startswith(f"gain is the mean change of prob from that of {llama_folder}, ")


def test_a_text_and_tasks_in_one_run(
    cli: Cli, arguments: list[object], text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "result.json"
    text = ["--text", text_file, "--seqlen", 32, "--windows", 2]
    result = json.loads(cli(*arguments, *text, "--limit", 3, "-o", file, "--json").out)
    assert result == json.loads(file.read_text())
    assert result["tasks"][0]["documents"] == 3
    assert result["text"]["windows"] == 2
    alone = json.loads(cli(*arguments[:2], *text, "--json").out)
    of_text = ("model", "perplexity", "loss", "bits_per_byte", "losses", "text")
    assert alone == {key: result[key] for key in of_text}
    out = cli(*arguments, *text, "--limit", 3).out.splitlines()
    assert out[0].startswith("task ")
    assert out[-1].startswith(f"perplexity {result['perplexity']:.2f} per token on 2 windows")


def test_predictions_beside_those_of_another_model(
    cli: Cli, arguments: list[object], llama_folder: Path, text_file: Path
) -> None:
    words = [*arguments[:2], "--text", text_file, "--seqlen", 32, "--windows", 2]
    outcome = cli(*words, "--beside", llama_folder)
    _, compared = outcome.out.splitlines()
    assert compared == (
        f"divergence 0.0000 nats per token from {llama_folder}, the same most likely token for "
        "100.0%"
    )


def test_refusals(cli: Cli, arguments: list[object], tmp_path: Path) -> None:
    assert cli(*arguments[:2]).error == "give --text to measure perplexity on, --tasks or --speed"
    assert cli(*arguments, "--beside", "a", "--beside", "b").error == (
        "--tasks compares with one model: give one --beside"
    )
    assert cli(*arguments[:2], "--beside", "a").error == (
        "--beside names models to compare with: add --text, --tasks or --speed"
    )
    assert cli(*arguments, "--limit", 0).error == (
        "--limit is 0: input should be greater than or equal to 1"
    )
    (tmp_path / "file").write_text("")
    assert "is not a folder" in cli(*arguments, "-o", tmp_path / "file" / "out.json").error


def test_tasks_and_speed_in_one_run_keep_the_provenance_of_both(
    cli: Cli, arguments: list[object]
) -> None:
    tasks = json.loads(cli(*arguments, "--json").out)
    both = json.loads(cli(*arguments, "--speed", "--seqlen", 8, "--json").out)
    assert "lm_eval" in tasks["provenance"]
    assert both["provenance"] == tasks["provenance"]
