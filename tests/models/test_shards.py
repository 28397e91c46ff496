"""The weights of a folder, one by one, are those that transformers loads from it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruner_zero.models import LanguageModel, save_model
from pruner_zero.models.read import quiet
from pruner_zero.models.shards import INDEX, WEIGHTS, Shards
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model


def saved(folder: Path, architecture: str, shard_size: str = "30KB") -> Path:
    model = tiny_model(architecture).bfloat16()
    save_model(LanguageModel(model, tiny_tokenizer(), architecture), folder, shard_size)
    return folder


def opened(folder: Path, dtype: torch.dtype | str = "auto") -> Shards:
    with quiet():
        bare = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "meta"})
    return Shards(folder, bare)


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_what_transformers_loads(
    architecture: str, dtype: torch.dtype | str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, architecture)
    assert len(list(folder.glob("*.safetensors"))) > 1
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    shards = opened(folder, dtype)
    named = dict(model.named_parameters())
    read = dict(shards.read(named))
    assert read.keys() == named.keys()
    for name, parameter in named.items():
        assert read[name].dtype == parameter.dtype
        assert torch.equal(read[name], parameter), name
        [(_, alone)] = shards.read([name])
        assert torch.equal(alone, parameter), name


def test_one_file_is_read_as_several_are(tmp_path: Path) -> None:
    single, several = saved(tmp_path / "one", "llama", "5GB"), saved(tmp_path / "several", "llama")
    assert (single / WEIGHTS).is_file()
    assert not (several / WEIGHTS).is_file()
    names = tiny_model("llama").state_dict()
    left, right = dict(opened(single).read(names)), dict(opened(several).read(names))
    assert all(torch.equal(left[name], right[name]) for name in names)


def test_a_tensor_that_is_read_shares_no_memory(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    shards, name = opened(folder), "model.embed_tokens.weight"
    [(_, first)] = shards.read([name])
    first.zero_()
    [(_, second)] = shards.read([name])
    assert second.any()


def test_names_that_are_not_there_are_not_in_it(tmp_path: Path) -> None:
    shards = opened(saved(tmp_path, "qwen2"))
    assert "model.embed_tokens.weight" in shards
    assert "lm_head.weight" not in shards  # tied to the embedding


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 1}'])
def test_a_broken_index_is_one_line(text: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    with quiet():
        bare = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "meta"})
    (folder / INDEX).write_text(text)
    assert "save the model again" in refusal(lambda: Shards(folder, bare))


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    with quiet():
        bare = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "meta"})
    name = json.loads((folder / INDEX).read_text())["weight_map"]["model.norm.weight"]
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    assert f"{folder / name} is damaged" in refusal(lambda: Shards(folder, bare))
