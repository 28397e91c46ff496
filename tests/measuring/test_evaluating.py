"""`evaluate`: what is refused before it measures, what it keeps of a failed run, what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero import evaluate
from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring import evaluating
from pruner_zero.measuring.perplexity import Perplexity
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.predictions import compare_predictions
from pruner_zero.progress import reported_to
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import consecutive_windows
from tests.conftest import save_tiny
from tests.measuring.local_task import write_task
from tests.text.refusals import refusal
from tests.tiny import FOX, Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

SIZES: dict[str, Any] = {"seqlen": 32, "windows": 4}


def renumbered(folder: Path) -> Path:
    """A saved model whose tokenizer has two tokens exchanged."""
    save_tiny(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokens = tokenizer["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    file.write_text(json.dumps(tokenizer))
    return folder


def test_what_can_be_refused_is_refused_before_anything_is_measured(
    text_file: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    passes: list[object] = []
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("llama", {"text": [text_file, short]}, f"corpus {short} has 9 tokens, fewer than one"),
        ("gpt2", {"text": [text_file], "seqlen": 65}, "longer than the 64 positions"),
        ("gpt2", {"speed": True, "seqlen": 60, "windows": None}, "longer than the 64 positions"),
    ]
    for architecture, options, line in cases:
        model = LanguageModel(tiny_model(architecture), tiny_tokenizer(), "mine")
        model.model.register_forward_pre_hook(lambda *_: passes.append(1))
        assert line in refusal(lambda: evaluate(model, **{**SIZES, **options}))  # noqa: B023
    assert not passes


def test_what_was_measured_before_an_error_is_written(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PrunerZeroError("the divergence is not finite")

    monkeypatch.setattr(evaluating, "compare_predictions", fail)
    options: dict[str, Any] = {**SIZES, "beside": llama_folder, "output": tmp_path / "out.json"}
    with pytest.raises(PrunerZeroError, match="not finite"):
        evaluate(llama_folder, [text_file, Corpus("fox", FOX)], **options)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["complete"] is False
    assert written["perplexity"] == evaluate(llama_folder, text_file, **SIZES).perplexity


def test_what_is_written_says_where_it_comes_from(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    file = tmp_path / "new" / "out.json"
    shared: dict[str, Any] = {"beside": str(llama_folder), "dtype": "bfloat16", "output": file}
    weights = load_model(llama_folder, "bfloat16").fingerprint()
    cases: list[dict[str, Any]] = [
        {"text": text_file, **SIZES, "batch_size": 3},
        {"tasks": ["kinds"], "include_path": write_task(tmp_path), "limit": 4},
        {"speed": True, "seqlen": 8},
    ]
    for asked in cases:
        result: Any = evaluate(llama_folder, **asked, **shared)
        written = json.loads(file.read_text())
        assert written == json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert written["model"] == str(llama_folder)
        settings = {"batch_size": asked.get("batch_size", 1), "dtype": "bfloat16"}
        assert settings.items() <= written["settings"].items()
        origin = written["provenance"]
        assert origin["torch"] == torch.__version__
        assert (origin["device"], origin["dtype"]) == ("cpu", "bfloat16")
        assert origin["model_sha256"] == origin["beside"][str(llama_folder)] == weights
        assert ("lm_eval" in origin) == ("tasks" in asked)
    with pytest.raises(PrunerZeroError, match="is no earlier output"):
        evaluate(llama_folder, text_file, output=text_file)


def test_a_list_of_names_is_several_texts_and_one_of_strings_is_a_text(
    llama_folder: Path, text_file: Path, prose: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    results = evaluate(llama_folder, [text_file, Corpus("fox", FOX)], output=file, **SIZES)
    alone = [evaluate(llama_folder, text, **SIZES) for text in (text_file, [FOX])]
    assert [result.losses for result in results] == [result.losses for result in alone]
    assert [text["text"]["text"] for text in json.loads(file.read_text())["texts"]] == [
        str(text_file),
        "fox",
    ]
    named: Any = evaluate(llama_folder, [str(text_file)], **SIZES)
    assert named[0].losses == alone[0].losses
    assert len(evaluate(llama_folder, [prose, FOX], **SIZES).losses) == 4


@pytest.mark.parametrize("listed", [False, True])
def test_a_model_beside_gives_divergence_and_agreement(
    listed: bool, llama_folder: Path, text_file: Path, prose: str
) -> None:
    model, beside = tiny_model("llama", seed=1), str(llama_folder)
    options: dict[str, Any] = {**SIZES, "tokenizer": tiny_tokenizer()}
    alone = evaluate(model, text_file, **options)
    result = evaluate(model, text_file, beside=[beside] if listed else beside, **options)
    windows = consecutive_windows(Corpus("text", prose), tiny_tokenizer(), 32, 4)
    expected = compare_predictions(model, tiny_model("llama"), windows.tokens)
    assert result.losses == alone.losses
    assert (result.beside, result.compared) == (beside, expected)
    assert result.to_rows()[0]["divergence"] == expected.divergence
    assert result.to_json()["beside"] == {"model": beside, **expected.to_json()}
    assert "agreement" in repr(result)
    assert "agreement" not in repr(alone)


def test_a_model_of_other_tokens_beside_compares_bits_per_byte(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are numbered differently, so that the other model reads other tokens."""
    other, heard = renumbered(tmp_path / "other"), Notes()
    with reported_to(heard):
        result = evaluate(llama_folder, text_file, beside=other, **SIZES)
    (line,) = heard.lines
    assert line.startswith(f"{other} has other tokens than {llama_folder} (number ")
    assert "a divergence has no meaning, so that bits per byte are compared" in line
    alone = [evaluate(folder, text_file, **SIZES) for folder in (llama_folder, other)]
    assert alone[0].losses != alone[1].losses
    assert result.bits_per_byte == alone[0].bits_per_byte
    assert isinstance(result.compared, Perplexity)
    assert result.compared.bits_per_byte == alone[1].bits_per_byte
    written = result.to_json()["beside"]
    assert (written["model"], written["bits_per_byte"]) == (str(other), alone[1].bits_per_byte)
    assert "divergence" not in written
    assert result.to_rows()[0]["bits_per_byte_beside"] == alone[1].bits_per_byte
    monkeypatch.setattr(type(tiny_tokenizer()), "is_fast", False)
    assert "bits per byte are unknown where a tokenizer does not tell" in refusal(
        lambda: evaluate(llama_folder, text_file, beside=other, **SIZES)
    )


def test_one_thing_is_measured_in_a_call(llama_folder: Path, prose: str) -> None:
    for asked in ({}, {"text": [prose], "tasks": "boolq"}, {"tasks": "boolq", "speed": True}):
        with pytest.raises(PrunerZeroError, match="speed: one of them"):
            evaluate(llama_folder, **asked)
    with pytest.raises(PrunerZeroError, match="--text compares with one model"):
        evaluate(llama_folder, [prose], beside=["a", "b"])
