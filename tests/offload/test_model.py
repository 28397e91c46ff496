"""An offloaded model is the model, of which one block at a time is in memory."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruner_zero.models.block_calls import run_block
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.models.reading import INDEX
from pruner_zero.models.saving import save_model
from pruner_zero.offload.model import load_offloaded
from pruner_zero.tensor_file import write_tensors
from tests.conftest import save_sharded
from tests.models.gguf_file import write_gguf
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, FUSED_EXPERTS, tiny_model, tiny_windows

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
# Beside fp32, bf16 for each way in which a model keeps its matrices.
every_architecture_and_some_in_bfloat16 = pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        *((name, torch.float32) for name in ARCHITECTURES),
        *((name, torch.bfloat16) for name in ("llama", "gpt2", "gemma3", *FUSED_EXPERTS)),
    ],
)


def in_memory(offloaded: LanguageModel) -> set[str]:
    """The names of the parameters that have memory of their own."""
    return {n for n, p in offloaded.model.named_parameters() if p.stride() != (0,) * p.ndim}


@every_architecture
def test_its_fingerprint_equals_that_of_the_loaded_model(architecture: str, tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, architecture)
    assert load_offloaded(folder).fingerprint() == load_model(folder).fingerprint()
    fingerprint = load_offloaded(folder, "bfloat16").fingerprint()
    assert fingerprint == load_model(folder, "bfloat16").fingerprint()
    assert fingerprint != load_offloaded(folder).fingerprint()


@every_architecture
def test_its_blocks_compute_the_same_as_those_of_the_loaded_model(
    architecture: str, tmp_path: Path
) -> None:
    folder, windows = save_sharded(tmp_path, architecture), tiny_windows()
    loaded, offloaded = load_model(folder), load_offloaded(folder)
    expected, calls = loaded.block_calls(windows), offloaded.block_calls(windows)
    hidden, others = list(expected.hidden), list(calls.hidden)
    with torch.no_grad():
        for index in range(3):
            assert all(torch.equal(*pair) for pair in zip(hidden, others, strict=True))
            with loaded.block(index) as block:
                hidden = [
                    run_block(block, state, arguments)
                    for state, arguments in zip(hidden, expected.arguments[index], strict=True)
                ]
            with offloaded.block(index) as block:
                others = [
                    run_block(block, state, arguments)
                    for state, arguments in zip(others, calls.arguments[index], strict=True)
                ]
    assert all(torch.equal(*pair) for pair in zip(hidden, others, strict=True))
    assert in_memory(offloaded) == set()


@every_architecture
def test_one_block_is_in_memory_and_nothing_after_it(architecture: str, tmp_path: Path) -> None:
    offloaded = load_offloaded(save_sharded(tmp_path, architecture))
    assert in_memory(offloaded) == set()
    names = {id(p): name for name, p in offloaded.model.named_parameters()}
    inside = {names[id(p)] for block in find_blocks(offloaded.model) for p in block.parameters()}
    for index in range(3):
        with offloaded.block(index) as block:
            assert in_memory(offloaded) == {names[id(p)] for p in block.parameters()}
        assert in_memory(offloaded) == set()
    with offloaded.outside():
        assert in_memory(offloaded) == set(names.values()) - inside


def test_weights_that_are_not_loaded_are_nan(tmp_path: Path) -> None:
    offloaded = load_offloaded(save_sharded(tmp_path, "llama"))
    assert all(parameter.isnan().all() for parameter in offloaded.model.parameters())


def test_changes_end_with_the_context_even_in_an_error(tmp_path: Path) -> None:
    offloaded = load_offloaded(save_sharded(tmp_path, "llama"))
    matrix = find_matrices(offloaded.model)[0]

    def interrupted() -> None:
        with offloaded.block(0):
            matrix.weight.zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert in_memory(offloaded) == set()
    with offloaded.block(0):
        assert matrix.weight.any()


@every_architecture_and_some_in_bfloat16
def test_it_is_saved_block_by_block_as_the_whole_model_is(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_sharded(tmp_path / "dense", architecture, dtype)
    loaded, offloaded = load_model(folder), load_offloaded(folder)
    for matrix in find_matrices(loaded.model):
        matrix.weight[:, ::2] = 0
    save_model(loaded, tmp_path / "whole")
    files = []
    for index in range(3):
        matrices = [matrix for matrix in find_matrices(offloaded.model) if matrix.block == index]
        with offloaded.block(index):
            for matrix in matrices:
                matrix.weight[:, ::2] = 0
            files.append(tmp_path / f"block-{index}")
            write_tensors(files[-1], offloaded.changed(index, matrices), {"format": "pt"})
    assert offloaded.on_disk
    offloaded.save_blocks(files, tmp_path / "blocks")
    again = load_model(tmp_path / "blocks")
    assert again.fingerprint() == load_model(tmp_path / "whole").fingerprint()
    windows = tiny_windows(1)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "blocks").eval()
    with torch.no_grad():
        assert torch.equal(plain(windows).logits, loaded.model(windows).logits)
    names = {file.name for file in (tmp_path / "whole").iterdir()}
    names -= {file for file in names if "safetensors" in file}
    assert names
    for name in names:
        assert (tmp_path / "blocks" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "blocks" / INDEX).is_file()


# What cannot be offloaded, and the words that must tell it.


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    message = refusal(lambda: load_offloaded(tmp_path / "tiny.gguf"))
    assert "GGUF" in message
    assert "--offload" in message


def test_a_quantized_model(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, "llama")
    config = (folder / "config.json").read_text()
    quantized = '{"quantization_config": {"quant_method": "fp8"},'
    (folder / "config.json").write_text(config.replace("{", quantized, 1))
    assert "is quantized" in refusal(lambda: load_offloaded(folder))


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
def test_a_folder_that_lacks_a_weight(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    tiny_tokenizer().save_pretrained(tmp_path)
    message = refusal(lambda: load_offloaded(tmp_path))
    assert "lacks 1 of the model's weights, model.layers.1.mlp.up_proj.weight" in message


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: load_offloaded(tmp_path / "nix"))


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.models.load.hub_reachable", lambda: False)
    message = refusal(lambda: load_offloaded("meta-llama/Llama-2-7b-hf"))
    assert "builtin:smollm2-135m" in message


def test_the_built_in_model_is_read_from_its_copy_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean" in refusal(lambda: load_offloaded("builtin:smollm2"))
    gguf = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("llama"), gguf)
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pruner_zero.models.load.installed_file", lambda _: gguf)
    name = "builtin:smollm2-135m"
    offloaded = load_offloaded(name)
    assert offloaded.name == name
    assert offloaded.fingerprint() == load_model(name).fingerprint()
