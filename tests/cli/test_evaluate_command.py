"""`evaluate`: tables that name every column, one JSON value, one line for an error."""

import json
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.perplexity import Perplexity, perplexity
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.token_windows import Windows
from tests.cli.conftest import Cli
from tests.conftest import save_tiny
from tests.measuring.local_task import QUESTIONS, write_task
from tests.tiny import FOX


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


def test_all_in_one_run(cli: Cli, arguments: list[object], text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.json"
    text = ["--text", text_file, "--seqlen", 32, "--windows", 2]
    words = [*arguments, *text, "--limit", 3, "--speed"]
    result = json.loads(cli(*words, "-o", file, "--json").out)
    assert result == json.loads(file.read_text())
    assert result["tasks"][0]["documents"] == 3
    assert result["text"]["windows"] == 2
    assert result["speed"][0]["parameters"] == 31968
    assert "complete" not in result
    alone = json.loads(cli(*arguments[:2], *text, "--json").out)
    for name in ("model", "perplexity", "loss", "bits_per_byte", "losses", "text"):
        assert alone[name] == result[name]
    out = cli(*words).out.splitlines()
    assert out[0].startswith("task ")
    assert out[-1].startswith(f"perplexity {result['perplexity']:.2f} per token on 2 windows")


def test_the_speed_of_several_models(cli: Cli, llama_folder: Path) -> None:
    words = ["evaluate", llama_folder, "--speed", "--seqlen", 8, "--beside", llama_folder]
    header, first, second, caption = cli(*words).out.splitlines()
    assert header.split() == ["model", "parameters", "bytes", "prefill", "decode"]
    assert first.split()[:3] == second.split()[:3] == [str(llama_folder), "31,968", "127,872"]
    assert caption.startswith("tokens a second, batch 1: prefill of 8 tokens, decoding of 32")


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_measured_before_an_error_is_printed(
    as_json: bool,
    cli: Cli,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "out.json"

    def fail_second(model: LanguageModel, windows: Windows, batch_size: int) -> Perplexity:
        if windows.corpus != str(text_file):
            raise PrunerZeroError("the model's loss is not finite")
        return perplexity(model, windows, batch_size)

    monkeypatch.setattr("pruner_zero.measuring.evaluating.perplexity", fail_second)
    (tmp_path / "fox.txt").write_text(FOX)
    words = ["evaluate", llama_folder, "--seqlen", 32, "--text", text_file, "--text"]
    words += [tmp_path / "fox.txt", "-o", file, *["--json"] * as_json]
    outcome = cli(*words)
    assert (outcome.code, outcome.err) == (2, "error: the model's loss is not finite\n")
    written = json.loads(file.read_text())
    assert written["complete"] is False
    if as_json:
        assert json.loads(outcome.out) == written
    else:
        assert outcome.out.startswith(f"perplexity {written['perplexity']:.2f} per token")
    assert written["text"]["text"] == str(text_file)


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


def test_a_model_of_other_tokens_is_compared_by_bits_per_byte(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    other = save_tiny(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"a":', '"?":').replace('"b":', '"a":'))
    file.write_text(file.read_text().replace('"?":', '"b":'))
    words = ["evaluate", llama_folder, "--text", text_file, "--seqlen", 32, "--beside", other]
    first, second = cli(*words).out.splitlines()
    assert " bits per byte, " in first
    assert f" bits per byte of {other}, " in second
    assert second.endswith("its tokens are others, so that a divergence has no meaning")


def test_refusals(cli: Cli, arguments: list[object], tmp_path: Path) -> None:
    assert cli(*arguments[:2]).error == "give --text to measure perplexity on, --tasks or --speed"
    assert cli(*arguments, "--beside", "a", "--beside", "b").error == (
        "--tasks compares with one model: give one --beside"
    )
    assert cli(*arguments, "--limit", 0).error == (
        "--limit is 0: input should be greater than or equal to 1"
    )
    (tmp_path / "file").write_text("")
    assert "is not a folder" in cli(*arguments, "-o", tmp_path / "file" / "out.json").error
