"""`prune --offload` ends with the weights that `prune` ends with; killed anywhere, too."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruner_zero import PrunerZeroError, load_model, prune
from pruner_zero.models.reading import INDEX
from pruner_zero.offload.model import OffloadedModel
from pruner_zero.pruning.prune_result import PruneResult
from tests.conftest import save_sharded, save_tiny
from tests.processes import Forked
from tests.pruning.test_resume import contents
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model

SMALL: dict[str, Any] = {"windows": 3, "seqlen": 24}
BLOCKS = 4

RUNS: dict[str, dict[str, Any]] = {
    "wanda": {"metric": "wanda", "sparsity": 0.5},
    "tree": {"metric": "pruner-zero", "sparsity": 0.5},
    "gblm-2:4": {"metric": "gblm", "pattern": "2:4"},
    "gblm": {"metric": "gblm", "sparsity": 0.5},
    "sparsegpt": {"metric": "sparsegpt", "sparsity": 0.5},
    "ria-obs": {"metric": "ria+obs", "sparsity": 0.5},
    "global": {"metric": "W * G", "sparsity": 0.37, "scope": "global"},
    "global-ties": {"metric": "magnitude@global", "sparsity": 0.5, "dtype": "bfloat16"},
    "global-obs": {"metric": "wanda@global+obs", "sparsity": 0.4},
    "partly": {"metric": "wanda", "sparsity": 0.5, "exclude": ("*.1.*",)},
    "channels": {"metric": "wanda", "structure": "channels", "sparsity": 0.5},
    "heads": {"metric": "wanda", "structure": "heads", "sparsity": 0.5},
    "distilled": {"metric": "wanda+distill=3", "sparsity": 0.5},
    "distilled-partly": {"metric": "wanda+distill=3", "sparsity": 0.5, "exclude": ("*.1.*",)},
    "n-of-m": {"metric": "wanda+obs", "pattern": "2:4"},
    "trained": {"metric": "wanda+reconstruct=1", "pattern": "2:4"},
}


def assert_same_result(expected: PruneResult, result: PruneResult) -> None:
    assert expected.output is not None
    assert result.output is not None
    assert list(expected.records) == list(result.records)
    plain = AutoModelForCausalLM.from_pretrained(expected.output).state_dict()
    offloaded = AutoModelForCausalLM.from_pretrained(result.output).state_dict()
    assert plain.keys() == offloaded.keys()
    for name, tensor in plain.items():
        assert offloaded[name].dtype == tensor.dtype
        assert torch.equal(offloaded[name], tensor), name
    for file in expected.output.iterdir():
        if file.name not in ("timing.json", "pruning.json") and "safetensors" not in file.name:
            assert (result.output / file.name).read_bytes() == file.read_bytes(), file.name
    expected_record, record = expected.to_json(), result.to_json()
    assert record.pop("settings")["offload"] is True
    expected_record.pop("settings")
    assert expected_record == record


@pytest.mark.parametrize(
    ("architecture", "run"),
    [
        *((architecture, "wanda") for architecture in ARCHITECTURES),
        *(("llama", run) for run in RUNS if run != "wanda"),
        ("gpt2", "sparsegpt"),
        ("qwen2", "channels"),
        ("qwen2", "trained"),
        ("gemma3", "heads"),
        ("mixtral", "heads"),
        ("gpt2", "global"),
        ("qwen3_moe", "tree"),
        ("qwen3_moe", "ria-obs"),
        ("gpt2", "distilled"),
        ("qwen3_moe", "distilled"),
    ],
)
def test_the_result_is_that_of_the_run_in_memory(
    architecture: str, run: str, text_file: Path, tmp_path: Path
) -> None:
    model = save_sharded(tmp_path / "model", architecture)
    options = {**RUNS[run], **SMALL, "calibration": text_file}
    plain = prune(model, output=tmp_path / "plain", cache=tmp_path / "cache-1", **options)
    offloading: dict[str, Any] = {"offload": True, "cache": tmp_path / "cache-2"}
    offloaded = prune(model, output=tmp_path / "offloaded", **offloading, **options)
    assert_same_result(plain, offloaded)
    # With statistics that are there already.
    offloading = {"offload": True, "cache": tmp_path / "cache-1"}
    assert_same_result(plain, prune(model, output=tmp_path / "cached", **offloading, **options))


def test_experts_that_no_token_reaches_end_as_they_do_in_memory(
    text_file: Path, tmp_path: Path
) -> None:
    model = save_sharded(tmp_path / "model", "mixtral")
    options: dict[str, Any] = {"calibration": text_file, "windows": 1, "seqlen": 2, "sparsity": 0.5}
    for metric in ("wanda", "wanda@global", "sparsegpt"):
        output, cache = tmp_path / metric, tmp_path / "cache"
        plain = prune(model, metric, output=output / "plain", cache=cache, **options)
        options["offload"] = True
        offloaded = prune(model, metric, output=output / "offloaded", cache=cache, **options)
        del options["offload"]
        assert any(record.note for record in plain.records)
        assert_same_result(plain, offloaded)


def test_the_result_is_in_shards_with_an_index(text_file: Path, tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model", "llama", torch.bfloat16)
    output = tmp_path / "out"
    prune(model, output=output, calibration=text_file, sparsity=0.5, offload=True, **SMALL)
    names = {file.name for file in output.glob("*.safetensors")}
    assert names == {f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)}
    index = json.loads((output / INDEX).read_text())
    assert set(index["weight_map"].values()) == names
    loaded = load_model(output)
    assert loaded.model.dtype == torch.bfloat16
    assert index["metadata"]["total_parameters"] == loaded.model.num_parameters()
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


@pytest.mark.parametrize("structure", ["channels", "heads"])
def test_a_model_that_becomes_smaller_on_disk_is_never_in_memory(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: str
) -> None:
    in_memory: list[bool] = []

    def noted(model: OffloadedModel, *rest: Any) -> None:
        parameters = model.model.parameters()
        in_memory.extend(p.untyped_storage().nbytes() > p.element_size() for p in parameters)
        save(model, *rest)

    save = OffloadedModel.save_blocks
    monkeypatch.setattr(OffloadedModel, "save_blocks", noted)
    model, output = save_sharded(tmp_path / "model", "llama"), tmp_path / "out"
    options = {**RUNS[structure], **SMALL}
    prune(model, output=output, calibration=text_file, offload=True, **options)
    assert in_memory
    assert not any(in_memory)
    smaller = load_model(output).model
    assert smaller.num_parameters() < load_model(model).model.num_parameters()


# What is refused, before any work.


def test_a_model_object_cannot_be_offloaded(text_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibration": text_file, "sparsity": 0.5, "offload": True, **SMALL}
    with pytest.raises(PrunerZeroError, match="give --offload its folder"):
        prune(tiny_model("llama"), tokenizer=tiny_tokenizer(), output=tmp_path / "out", **options)
    with pytest.raises(PrunerZeroError, match="needs an output folder"):
        prune(save_sharded(tmp_path / "model", "llama"), **options)


# Killed, it goes on.


def journal(parent: Path) -> tuple[str, int] | None:
    """The journal that a run has on disk, and the number of its steps."""
    for place, pattern in (
        ("blocks", "out.partial/blocks/journal.jsonl"),
        ("inputs", "cache/*/inputs.partial/journal.jsonl"),
        ("gradients", "cache/*/gradients.partial/journal.jsonl"),
    ):
        for file in parent.glob(pattern):
            try:
                steps = file.read_bytes().count(b"\n") - 1
            except FileNotFoundError:
                # It was finished just now.
                continue
            if steps > 0 or place != "blocks":
                return place, steps
    return None


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (["--metric", "gblm+obs"], {"gradients", "blocks"}),
        (["--metric", "gblm"], {"gradients", "inputs", "blocks"}),
        (["--metric", "W * G", "--scope", "global"], {"gradients", "blocks"}),
    ],
)
@pytest.mark.slow
def test_a_kill_after_every_step_changes_no_byte(
    method: list[str], passes: set[str], text_file: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", blocks=BLOCKS)
    command = ["prune", model, *method, "--sparsity", 0.5, "--offload"]
    command += ["--calibration", text_file, "--windows", 24, "--seqlen", 48]

    def run(parent: Path) -> Forked:
        parent.mkdir(exist_ok=True)
        places = ["-o", parent / "out", "--cache", parent / "cache"]
        return Forked(*command, *places, log=parent / "log")

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert run(undisturbed).end() == 0
    whole = contents(undisturbed / "out")
    kills: list[tuple[str, int]] = []
    while not (killed / "out").exists():
        process = run(killed)
        while process.process.is_alive():
            now = journal(killed)
            if now and now[1] > 0 and now not in kills:
                kills.append(now)
                process.kill()
                break
            time.sleep(0.0005)
        else:
            assert process.end() == 0, process.err.read_text()
    # The last kill may have come when only the traces of its work were left: they go now.
    assert run(killed).end() == 2
    assert contents(killed / "out") == whole
    assert {place for place, _ in kills} == passes, kills
    assert len(kills) >= 2 * len(passes), kills
    assert not (killed / "out.partial").exists()
    for store in (undisturbed, killed):
        assert not list(store.glob("cache/*/*.partial"))
