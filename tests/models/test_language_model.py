"""The fingerprint of a model, and the checks of what is given beside it."""

import pytest
import torch
from transformers import PreTrainedModel

from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.matrices import find_matrices
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, POSITIONS, VOCABULARY, tiny_model


def described(model: PreTrainedModel) -> str:
    return LanguageModel(model, tiny_tokenizer(), "tiny").fingerprint()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_models_have_equal_fingerprints_and_others_do_not(architecture: str) -> None:
    assert described(tiny_model(architecture)) == described(tiny_model(architecture))
    assert described(tiny_model(architecture)) != described(tiny_model(architecture, seed=1))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss"])
def test_every_weight_counts(architecture: str) -> None:
    model = tiny_model(architecture)
    fingerprints = {described(model)}
    for matrix in find_matrices(model):
        matrix.weight[0, 0] += 1
        fingerprints.add(described(model))
    assert len(fingerprints) == 1 + len(find_matrices(model))


def test_the_dtype_the_shape_and_the_configuration_count() -> None:
    # Zeros have the same bytes in both dtypes and in both shapes.
    model = tiny_model("llama").half()
    weight = model.lm_head.weight
    weight.data.zero_()
    fingerprints = {described(model)}
    weight.data = weight.data.bfloat16()
    fingerprints.add(described(model))
    weight.data = weight.data.T
    fingerprints.add(described(model))
    model.config.rms_norm_eps = 1e-3
    fingerprints.add(described(model))
    assert len(fingerprints) == 4


def test_where_the_model_came_from_does_not_count() -> None:
    model = tiny_model("llama")
    before = described(model)
    model.config._name_or_path = "elsewhere"
    model.config.architectures = ["LlamaForCausalLM"]
    assert described(model) == before


@pytest.mark.fault("a tokenizer with more tokens than the model embeds")
def test_tokens_beyond_the_embedding_or_the_head_are_refused() -> None:
    model = tiny_model("llama")
    check_tokens(model, torch.tensor([[0, VOCABULARY - 1]]))
    message = refusal(lambda: check_tokens(model, torch.tensor([[0, VOCABULARY]])))
    assert f"token {VOCABULARY} but the model embeds only {VOCABULARY}: use the tok" in message
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCABULARY - 1, bias=False)
    check_tokens(model, torch.tensor([[0, VOCABULARY - 2]]))
    message = refusal(lambda: check_tokens(model, torch.tensor([[0, VOCABULARY - 1]])))
    assert f"token {VOCABULARY - 1} but the model's head scores only {VOCABULARY - 1}" in message


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_windows_longer_than_the_learned_positions_are_refused(architecture: str) -> None:
    model = tiny_model(architecture)
    check_tokens(model, torch.zeros(1, POSITIONS, dtype=torch.int64))
    message = refusal(lambda: check_tokens(model, torch.zeros(1, POSITIONS + 1, dtype=torch.int64)))
    assert f"longer than the {POSITIONS} positions" in message
    assert f"choose --seqlen {POSITIONS} or less" in message
    prompt = torch.zeros(1, POSITIONS, dtype=torch.int64)
    message = refusal(lambda: check_tokens(model, prompt, generated=8))
    assert f"choose --seqlen {POSITIONS - 8} or less" in message
    # Rotary models take windows of any length.
    check_tokens(tiny_model("llama"), torch.zeros(1, 10 * POSITIONS, dtype=torch.int64))
