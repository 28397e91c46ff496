"""Blocks of different sizes: in memory, in a folder that transformers alone loads, and back."""

import json
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruner_zero.models.block_sizes import block_sizes, has_code, set_block_sizes
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks
from pruner_zero.models.saving import save_model
from pruner_zero.offload.model import load_offloaded
from pruner_zero.structure.blocks import drop_blocks
from tests.models.different_blocks import KEPT, cut_blocks
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
CODE = "modeling_block_sizes.py"
each_family = pytest.mark.parametrize("family", FAMILIES)

# What a user of such folders runs: it knows nothing of this program.
PLAIN = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
tokens = torch.tensor([[1, 5, 9, 2]])
for folder in map(Path, sys.argv[2:]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    written = model.generate(tokens, max_new_tokens=4, do_sample=False)
    model.save_pretrained(folder / "again")
    logits = {"logits": model(tokens).logits.detach(), "written": written}
    save_file(logits, Path(sys.argv[1], folder.name + ".safetensors"))
assert not any(name.startswith("pruner_zero") for name in sys.modules)
"""


def cut_model(family: str) -> PreTrainedModel:
    model = tiny_model(family, blocks=3)
    cut_blocks(model)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a tiny model of each family. Tests must not write to it."""
    root = tmp_path_factory.mktemp("cut")
    for family in FAMILIES:
        save_model(LanguageModel(cut_model(family), tiny_tokenizer(), family), root / family)
    return {family: root / family for family in FAMILIES}


@each_family
def test_a_model_with_units_cut_out_computes_what_it_does_with_their_columns_zero(
    family: str,
) -> None:
    masked, cut, windows = tiny_model(family, blocks=3), cut_model(family), tiny_windows()
    blocks: Sequence[Any] = find_blocks(masked)
    for block, (channels, heads) in zip(blocks, KEPT, strict=True):
        block.mlp.down_proj.weight.data[:, : 48 - channels] = 0
        block.self_attn.o_proj.weight.data[:, : (2 - heads) * 16] = 0
    assert torch.allclose(cut(windows).logits, masked(windows).logits, atol=1e-5)
    written = [m.generate(windows[:1], max_new_tokens=4, do_sample=False) for m in (cut, masked)]
    assert torch.equal(*written)


@each_family
def test_sizes_are_what_they_were_set_to(family: str) -> None:
    model = tiny_model(family, blocks=3)
    before, sizes = model.config.to_json_string(), block_sizes(model.config)
    assert (
        sizes == [{"intermediate_size": 48, "num_key_value_heads": 2, "num_attention_heads": 4}] * 3
    )
    set_block_sizes(model.config, [{"intermediate_size": width} for width in (48, 16, 48)])
    assert [size["intermediate_size"] for size in block_sizes(model.config)] == [48, 16, 48]
    # Entries are those of the blocks that differ.
    assert model.config.to_dict()["per_layer_config"] == {"1": {"intermediate_size": 16}}
    copied = type(model.config).from_dict(model.config.to_dict())
    assert block_sizes(copied) == block_sizes(deepcopy(model.config)) == block_sizes(model.config)
    set_block_sizes(model.config, sizes)
    assert model.config.to_json_string() == before
    assert not has_code(model.config)


def test_sizes_that_are_the_same_in_all_blocks_are_plain_fields() -> None:
    """The width of a head stays, which would follow from their number."""
    config = tiny_model("qwen2", blocks=3).config
    del config.head_dim
    few = {"num_key_value_heads": 1, "num_attention_heads": 2}
    set_block_sizes(config, [few | {"intermediate_size": width} for width in (32, 16, 16)])
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 8)
    set_block_sizes(config, [{"intermediate_size": 16}] * 3)
    assert config.intermediate_size == 16
    assert not config.is_heterogeneous
    with pytest.raises(ValueError, match="zip"):
        set_block_sizes(config, [few] * 2)


def test_transformers_alone_loads_the_folders_and_saves_them_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PLAIN, str(tmp_path), *map(str, folders.values())]
    subprocess.run(command, check=True, capture_output=True, env={"HF_HOME": str(tmp_path)})
    tokens = torch.tensor([[1, 5, 9, 2]])
    for family, folder in folders.items():
        model, (logits, written) = cut_model(family), loaded(tmp_path / f"{family}.safetensors")
        assert torch.equal(logits, model(tokens).logits)
        assert torch.equal(written, model.generate(tokens, max_new_tokens=4, do_sample=False))
        assert (folder / "again" / CODE).read_bytes() == (folder / CODE).read_bytes()


def loaded(path: Path) -> tuple[Tensor, Tensor]:
    tensors = load_file(path)
    return tensors["logits"], tensors["written"]


@each_family
def test_without_that_code_transformers_refuses(family: str, folders: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(folders[family], trust_remote_code=False)
    config = tiny_model(family, blocks=3).config
    set_block_sizes(config, [{"intermediate_size": width} for width in (48, 16, 48)])
    with pytest.raises(RuntimeError, match="'intermediate_size' is a per-layer attribute"):
        AutoModelForCausalLM.from_config(config)


def attentions(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "layer_idx")]


@each_family
def test_a_folder_is_loaded_without_running_its_code(family: str, tmp_path: Path) -> None:
    saved = LanguageModel(cut_model(family), tiny_tokenizer(), family)
    save_model(saved, tmp_path)
    (tmp_path / CODE).write_text("raise SystemExit('run')")
    again, windows = load_model(tmp_path), tiny_windows()
    assert torch.equal(again.model(windows).logits, saved.model(windows).logits)
    assert again.fingerprint() == saved.fingerprint()
    expected = saved.model(windows).logits
    again.model.set_attn_implementation("eager")
    assert all(module.config is again.model.config for module in attentions(again.model))
    assert torch.allclose(again.model(windows).logits, expected, atol=1e-5)
    save_model(again, tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_bytes())
    assert config == json.loads((tmp_path / "config.json").read_bytes())
    assert "def __getattr__" in (tmp_path / "again" / CODE).read_text()


def test_its_blocks_are_read_from_the_disk_one_by_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    offloaded = load_offloaded(folders["llama"])
    assert offloaded.fingerprint() == load_model(folders["llama"]).fingerprint()
    offloaded.save_blocks([], tmp_path)
    assert (tmp_path / CODE).read_bytes() == (folders["llama"] / CODE).read_bytes()


def test_blocks_that_stay_keep_their_sizes(tmp_path: Path, folders: dict[str, Path]) -> None:
    smaller = load_model(folders["llama"])
    sizes = block_sizes(smaller.model.config)
    drop_blocks(smaller.model, [0])
    assert block_sizes(smaller.model.config) == sizes[1:]
    save_model(smaller, tmp_path)
    windows = tiny_windows()
    assert torch.equal(load_model(tmp_path).model(windows).logits, smaller.model(windows).logits)


def test_sizes_that_the_weights_do_not_have_take_no_memory(tmp_path: Path) -> None:
    save_model(LanguageModel(cut_model("llama"), tiny_tokenizer(), "tiny"), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_bytes())
    config["per_layer_config"]["1"]["intermediate_size"] = 10**9
    path.write_text(json.dumps(config))
    assert "has intermediate_size 1000000000" in refusal(lambda: load_model(tmp_path))


def test_blocks_of_equal_sizes_need_no_code(tmp_path: Path) -> None:
    save_model(LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny"), tmp_path)
    assert not (tmp_path / CODE).exists()
    assert "auto_map" not in (tmp_path / "config.json").read_text()
