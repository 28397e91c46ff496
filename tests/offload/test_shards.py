"""What is wrong with the files of a model is named; test_offloaded.py reads those of others."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruner_zero.models.quiet import quiet
from pruner_zero.models.reading import INDEX
from pruner_zero.offload.shards import Shards
from tests.conftest import save_sharded
from tests.text.refusals import refusal


def bare(folder: Path) -> PreTrainedModel:
    """The model saved in `folder`, without its weights."""
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": "meta"}, use_kernels=False
        )
    return model


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 1}'])
def test_a_broken_index_is_one_line(text: str, tmp_path: Path) -> None:
    model = bare(save_sharded(tmp_path))
    (tmp_path / INDEX).write_text(text)
    assert "save the model again" in refusal(lambda: Shards(tmp_path, model))


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    model = bare(save_sharded(tmp_path))
    name = json.loads((tmp_path / INDEX).read_text())["weight_map"]["model.norm.weight"]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-10])
    assert f"{tmp_path / name} is damaged" in refusal(lambda: Shards(tmp_path, model))
