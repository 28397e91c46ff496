"""Saving: the folder holds the very same weights, and plain transformers loads it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.models.saving import save_model
from tests.full_disk import full_disk
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_windows

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def tiny(architecture: str) -> LanguageModel:
    return LanguageModel(tiny_model(architecture), tiny_tokenizer(), architecture)


@every_architecture
def test_saving_and_loading_keeps_every_bit_and_the_ties(architecture: str, tmp_path: Path) -> None:
    """Zeros are saved as zeros; plain transformers loads the same model."""
    saved = tiny(architecture)
    for matrix in find_matrices(saved.model):
        matrix.weight[:, ::2] = 0
    save_model(saved, tmp_path)
    loaded, plain = load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for model in (loaded.model, plain):
        after = model.state_dict()
        assert after.keys() == saved.model.state_dict().keys()
        for name, tensor in saved.model.state_dict().items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor), name
        assert tied(model) == tied(saved.model)
    assert loaded.fingerprint() == saved.fingerprint()
    windows = tiny_windows(1)
    with torch.no_grad():
        assert torch.equal(plain(windows).logits, saved.model(windows).logits)


def tied(model: PreTrainedModel) -> bool:
    """Whether the embedding and the head share their memory."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return bool(embedding.weight.data_ptr() == head.weight.data_ptr())


def test_a_large_model_is_saved_in_shards_of_which_a_newer_one_leaves_nothing(
    tmp_path: Path,
) -> None:
    saved = tiny("llama")
    save_model(saved, tmp_path, shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_model(tmp_path).fingerprint() == saved.fingerprint()
    newer = LanguageModel(tiny_model("llama", seed=1), tiny_tokenizer(), "newer")
    save_model(newer, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert load_model(tmp_path).fingerprint() == newer.fingerprint()


def test_sampling_defaults_that_transformers_warns_about_are_carried_along(
    tmp_path: Path,
) -> None:
    # As published checkpoints have them: a temperature without do_sample.
    save_model(tiny("llama"), tmp_path / "published")
    settings = tmp_path / "published/generation_config.json"
    settings.write_text('{"temperature": 0.6, "top_p": 0.9, "do_sample": false}')
    save_model(load_model(tmp_path / "published"), tmp_path / "again")
    assert load_model(tmp_path / "again").model.generation_config.temperature == 0.6


def test_a_file_in_the_place_of_the_folder_and_a_full_disk_are_one_line(tmp_path: Path) -> None:
    saved, file = tiny("llama"), tmp_path / "file"
    file.write_text("x")
    assert str(file) in refusal(lambda: save_model(saved, file))
    with full_disk():
        message = refusal(lambda: save_model(saved, tmp_path / "out"))
    assert str(tmp_path / "out") in message
    assert "no space left" in message
