"""`recover` as a whole: better models, the same zeros, and a folder that describes the run."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.provenance import provenance
from pruner_zero.recovery.recover import check_pruned, recover
from pruner_zero.recovery.recover_result import RecoverResult
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import tokens_sha256
from pruner_zero.training.train import Training
from tests.conftest import save_tiny
from tests.full_disk import full_disk
from tests.recovery.conftest import pruned_model, save_compact, save_pruned
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model

SMALL: dict[str, Any] = {"steps": 4, "seqlen": 16, "learning_rate": 1e-2}


def run(model: object, prose: str, **options: Any) -> RecoverResult:
    return recover(model, text=Corpus("prose", prose), **{**SMALL, **options})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_zero_stays_and_the_model_learns(architecture: str, prose: str) -> None:
    pruned, zeros = pruned_model(architecture)
    before = {name: tensor.clone() for name, tensor in pruned.weights()}
    result = run(pruned, prose)
    assert result.loss_after < result.loss_before
    moved = 0
    for name, tensor in pruned.weights():
        if name in zeros:
            # Exactly the same weights are zero as before.
            assert torch.equal(tensor == 0, zeros[name]), name
            moved += int((tensor != before[name]).sum())
        else:
            assert torch.equal(tensor, before[name]), name
    assert moved > sum(int((~places).sum()) for places in zeros.values()) / 2
    assert result.sparsity_after == result.sparsity_before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plain_transformers_loads_the_folder(
    dtype: torch.dtype, prose: str, tmp_path: Path
) -> None:
    pruned, zeros = pruned_model("llama", dtype)
    run(pruned, prose, output=tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    state = pruned.model.state_dict()
    assert plain.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.items())
    assert {tensor.dtype for tensor in plain.values()} == {dtype}
    assert all(torch.equal(plain[name] == 0, places) for name, places in zeros.items())
    assert not list((tmp_path / "out").glob("adapter*"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Fine-tuned (all kept weights) for 4 steps" in card


def test_recovery_json_describes_the_run(
    pruned_folder: Path, text_file: Path, prose: str, tmp_path: Path
) -> None:
    result = recover(pruned_folder, text=text_file, output=tmp_path / "out", **SMALL)
    record = json.loads((tmp_path / "out" / "recovery.json").read_text())
    assert record == json.loads(json.dumps(result.to_json()))
    assert record["settings"]["model"] == str(pruned_folder)
    assert record["settings"]["learning_rate"] == 1e-2
    assert record["settings"]["minutes"] is None
    assert record["sparsity_before"] == record["sparsity_after"] == 0.5
    # Seconds are no part of what a repeated run gives again.
    keys = {"step", "tokens", "train_loss", "validation_loss"}
    assert [point.keys() for point in record["curve"]] == [keys] * len(record["curve"])
    assert record["loss_before"] == record["curve"][0]["validation_loss"]
    assert record["loss_after"] == min(point["validation_loss"] for point in record["curve"])
    assert record["training"]["text"] == f"{text_file} (first nine tenths)"
    assert record["validation"]["windows"] == 8
    assert record["provenance"]["model_sha256"] == load_model(pruned_folder).fingerprint()
    assert record["provenance"]["teacher_sha256"] is None
    assert record["provenance"].keys() > provenance().keys()
    assert record["training"]["text_sha256"] != record["validation"]["text_sha256"]
    assert len(record["training"]["tokens_sha256"]) == 64
    timed = {*keys, "seconds"}
    assert [row.keys() for row in result.to_rows()] == [timed] * len(record["curve"])
    assert f"{tmp_path / 'out'}: 50.00% zeros; loss on held-out text" in repr(result)
    timing = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert timing["first_step_of_this_process"] == 0
    assert timing["seconds"] > 0


def test_minutes_are_in_the_record_and_on_the_card(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    """Where the budget is in minutes: with steps alone a repeated run writes the same record."""
    output = tmp_path / "out"
    result = run(pruned_folder, prose, output=output, steps=None, minutes=0.02)
    assert result.curve[-1].step > 1
    curve = json.loads((output / "recovery.json").read_text())["curve"]
    assert [point["seconds"] for point in curve] == [point.seconds for point in result.curve]
    assert 0 < curve[-1]["seconds"] < 2 * 0.02 * 60
    last = result.curve[-1]
    card = (output / "README.md").read_text()
    assert f"The loss by minutes of training: 0.0: {result.loss_before:.4f}, " in card
    assert f"{last.seconds / 60:.1f}: {last.validation_loss:.4f}.\n" in card


def test_files_of_prune_are_copied_and_the_card_is_extended(prose: str, tmp_path: Path) -> None:
    source = save_pruned(tmp_path / "source")
    (source / "pruning.json").write_text('{"sparsity": 0.5}')
    (source / "metric.json").write_text('{"data": "W"}')
    (source / "README.md").write_text("# Pruned\n\nBy `W`. Nothing was retrained.\n")
    run(source, prose, output=tmp_path / "out")
    for name in ("pruning.json", "metric.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Pruned\n\nBy `W`. It was fine-tuned since, see below.\n\n## Recovery")
    assert "Every pruned weight is still zero (50.00% of all)" in card


def test_without_a_text_the_teacher_writes_it(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "default"))
    pruned, zeros = pruned_model()
    small = {**SMALL, "windows": 12, "steps": 40, "cache": tmp_path / "cache"}
    result = recover(pruned, teacher=llama_folder, output=tmp_path / "out", **small)
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "default").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"text that the teacher wrote, taught by `{llama_folder}`" in card
    learned = [point.train_loss for point in result.curve if point.train_loss is not None]
    assert learned[-1] < 0.8 * learned[0]
    assert all(not pruned.model.get_parameter(name)[zero].any() for name, zero in zeros.items())
    assert (result.settings.text, result.settings.teacher_share) == ("self", 1)
    written = self_windows(load_model(llama_folder), 12, 16, seed=0).tokens
    for described, windows in ((result.training, written[:11]), (result.validation, written[11:])):
        assert described["tokens_sha256"] == tokens_sha256(windows)


def test_several_texts_are_learned_by_their_shares(
    llama_folder: Path, prose: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path))
    pruned, _ = pruned_model()
    texts = {Corpus("prose", prose): 2, "self": 1}
    small = {**SMALL, "windows": 10}
    result = recover(pruned, text=texts, teacher=llama_folder, **small)
    assert result.settings.text == {"prose": 2, "self": 1}
    assert result.settings.teacher_share == 0.5
    described = [part["sources"] for part in (result.training, result.validation)]
    names = [[source["text"] for source in sources] for sources in described]
    assert names[0] == ["prose (first nine tenths)", "self (first nine tenths)"]
    # The one written window that is held out is the last of ten.
    assert [source["windows"] for source in described[1]] == [5, 1]


def test_a_teacher_by_name_or_as_an_object(llama_folder: Path, prose: str) -> None:
    fingerprints = []
    for teacher in (llama_folder, load_model(llama_folder), None):
        pruned, _ = pruned_model()
        result = run(pruned, prose, teacher=teacher)
        fingerprints.append(result.language_model.fingerprint())
        hashed = None if teacher is None else load_model(llama_folder).fingerprint()
        assert result.provenance["teacher_sha256"] == hashed
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("structure", ["channels", "heads", "blocks"])
def test_a_smaller_model_learns_from_the_dense_one_of_other_widths(
    structure: str, prose: str, tmp_path: Path
) -> None:
    dense = save_tiny(tmp_path / "dense", blocks=4)
    folder = save_compact(tmp_path / "compact", prose, structure, dense)
    before = AutoModelForCausalLM.from_pretrained(folder)
    options: dict[str, Any] = {"teacher": dense}
    result = run(folder, prose, output=tmp_path / "out", **options)
    assert result.loss_after < result.loss_before
    assert "zeros" not in repr(result)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (
        after.num_parameters() == before.num_parameters() < load_model(dense).model.num_parameters()
    )
    pairs = list(zip(find_matrices(before), find_matrices(after), strict=True))
    assert all(old.weight.shape == new.weight.shape for old, new in pairs)
    assert all(float((old.weight != new.weight).float().mean()) > 0.9 for old, new in pairs)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"taught by `{dense}`.\n" in card
    assert "mask" not in card.split("## Recovery")[1]
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["settings"]["structure"]
    line = refusal(lambda: run(folder, prose))
    assert "if prune removed whole units, give the dense model as --teacher" in line


def test_a_dense_model_is_refused_unless_its_teacher_is_larger() -> None:
    small, large = (
        LanguageModel(tiny_model("llama", blocks=blocks), tiny_tokenizer(), "some/model")
        for blocks in (2, 3)
    )
    find_matrices(small.model)[0].weight[0, :3] = 0
    for teacher in (None, small):
        assert refusal(partial(check_pruned, small, teacher)) == (
            "some/model is not pruned, 0.02% of its prunable weights are zero: give the folder "
            "that prune wrote; if prune removed whole units, give the dense model as --teacher"
        )
    # The same parameters in fewer bytes.
    narrow = replace(small, model=tiny_model("llama").bfloat16())
    assert "is not pruned" in refusal(partial(check_pruned, narrow, small))
    check_pruned(small, large)
    check_pruned(pruned_model()[0], None)


def test_each_refusal_is_one_line(
    llama_folder: Path, pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    line = refusal(lambda: run(llama_folder, prose, output=output))
    assert line.startswith(f"{llama_folder} is not pruned, 0.00% of its prunable weights are zero")
    pruned, _ = pruned_model("gpt2")
    assert "choose --seqlen 64 or less" in refusal(
        lambda: run(pruned, prose, output=output, seqlen=65)
    )
    broken, _ = pruned_model()
    find_matrices(broken.model)[0].weight[0, 0] = float("nan")
    assert "NaN or infinite" in refusal(lambda: run(broken, prose, output=output))
    assert "fewer than one window" in refusal(lambda: run(pruned_folder, "ab " * 9, output=output))
    assert "no text to train on" in refusal(lambda: recover(pruned_folder, output=output))
    line = refusal(lambda: run(pruned_folder, prose, output=output, batch=10**6))
    assert line.startswith("--batch is 1000000: the text has ")
    short = LanguageModel(tiny_model("gpt2"), tiny_tokenizer(), "short")
    line = refusal(lambda: run(pruned_folder, prose, output=output, teacher=short, seqlen=65))
    assert "choose --seqlen 64 or less" in line
    assert list(tmp_path.iterdir()) == []
    run(pruned_folder, prose, output=output)
    assert "add --overwrite" in refusal(lambda: run(pruned_folder, prose, output=output))
    run(pruned_folder, prose, output=output, overwrite=True)


def test_neither_the_model_nor_the_teacher_is_replaced(
    pruned_folder: Path, llama_folder: Path, prose: str
) -> None:
    for folder in (pruned_folder, llama_folder):
        options = {"teacher": llama_folder, "output": folder, "overwrite": True}
        with pytest.raises(PrunerZeroError, match="which this command reads: choose another"):
            run(pruned_folder, prose, **options)


def test_divergence_before_the_first_checkpoint_leaves_nothing(
    pruned_folder: Path, prose: str, tmp_path: Path
) -> None:
    line = refusal(
        lambda: run(pruned_folder, prose, output=tmp_path / "out", steps=50, learning_rate=1e38)
    )
    assert "choose a lower --learning-rate" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault(
    "the disk is full, read-only or a mount point at a known write",
    "one line; the old file stays, nothing half-written is left",
)
def test_a_full_disk_costs_no_training(pruned_folder: Path, prose: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    # Room enough for the trained weights and their moments, not for the model and its embeddings;
    # the last step is the best one, so that no other weights are kept.
    room = (pruned_folder / "model.safetensors").stat().st_size - 4000
    with full_disk(room):
        line = refusal(lambda: run(pruned_folder, prose, output=output, learning_rate=1e-3))
    assert "no space left" in line
    assert not output.exists()
    result = run(pruned_folder, prose, output=output, learning_rate=1e-3)
    timing = json.loads((output / "timing.json").read_text())
    assert timing["first_step_of_this_process"] == SMALL["steps"]
    assert result.curve[-1].step == SMALL["steps"]


def test_a_failed_allocation_names_the_settings_to_lower(
    pruned_folder: Path, prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "run", fail)
    line = refusal(lambda: run(pruned_folder, prose))
    assert line == "out of memory: choose a smaller --batch or a shorter --seqlen"
