"""Experts of mixtures: found by their configuration, and removed as if no router chose them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV4Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.matrices import find_blocks, size_of
from pruner_zero.structure.experts import Experts, Mixtures, find_mixtures
from tests.structure.test_couplings import logits
from tests.tiny_models import EXPERTS, tiny_model

SUPPORTED = ("mixtral", "qwen3_moe", "gpt_oss")
# Others of every block than of the one before.
KEPT = ((0, 2, 3, 5, 6), (1, 2, 4, 6, 7))
SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": EXPERTS,
    "first_k_dense_replace": 1,
}


def keeping(mixtures: Mixtures, kept: Mapping[int, Sequence[int]]) -> Experts:
    """The cut by which these experts of each block stay."""
    scores = {
        block: [float(expert in experts) for expert in range(mixtures.count)]
        for block, experts in kept.items()
    }
    return Experts(0.5, mixtures=mixtures, kept=len(next(iter(kept.values()))), scores=scores)


def router_of(block: nn.Module) -> nn.Module:
    """The router of a block, which chooses its experts."""
    return next(module for module in block.modules() if type(module).__name__.endswith("Router"))


@contextmanager
def never_chosen(model: PreTrainedModel, kept: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """The router logits of all other experts are −inf within the context."""
    linear = nn.functional.linear

    def masking(forward: Callable[..., Any], gone: list[int]) -> Callable[..., Any]:
        def logits(*arguments: Tensor) -> Tensor:
            return linear(*arguments).index_fill(-1, torch.tensor(gone), -torch.inf)

        def masked(*arguments: Any, **named: Any) -> Any:
            with patch("torch.nn.functional.linear", logits):
                return forward(*arguments, **named)

        return masked

    with ExitStack() as stack:
        for index, experts in kept.items():
            router = router_of(find_blocks(model)[index])
            gone = [expert for expert in range(EXPERTS) if expert not in experts]
            stack.enter_context(patch.object(router, "forward", masking(router.forward, gone)))
        yield


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                assert name.endswith("weight") or "bias" in name
    return model


def with_shared_experts() -> PreTrainedModel:
    shared: dict[str, Any] = {"num_experts": EXPERTS, "shared_expert_intermediate_size": 40}
    return random_model(Qwen2MoeConfig(**SMALL, **shared))


def with_sigmoid_router(groups: int = 1) -> PreTrainedModel:
    return random_model(DeepseekV3Config(**SMALL, **LATENT, n_group=groups, topk_group=1))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: lambda name=name: tiny_model(name) for name in SUPPORTED},  # type: ignore[misc]
    "qwen2_moe": with_shared_experts,
    "deepseek_v3": with_sigmoid_router,
}


@pytest.mark.parametrize("family", MODELS)
def test_removed_experts_are_those_that_no_router_chooses(family: str) -> None:
    model = MODELS[family]()
    mixtures, dense = find_mixtures(model), logits(model)
    assert (mixtures.count, mixtures.chosen) == (EXPERTS, 2)
    kept = {mixture.block: KEPT[mixture.block] for mixture in mixtures.blocks}
    with never_chosen(model, kept):
        expected = logits(model)
    assert (expected - dense).abs().max() > 1e-3
    cut = keeping(mixtures, kept)
    predicted, before = cut.size(model), size_of(model)
    with cut.undone(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert size_of(model) == before
    assert torch.equal(logits(model), dense)
    cut.cut(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert size_of(model) == predicted < before
    rebuilt = AutoModelForCausalLM.from_config(type(model.config).from_dict(model.config.to_dict()))
    rebuilt.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(rebuilt.eval()), expected, atol=1e-5, rtol=1e-5)
    assert find_mixtures(model).count == 5


def test_a_block_without_experts_is_left_alone() -> None:
    model = tiny_model("qwen3_moe", blocks=3)
    mixtures = find_mixtures(model)
    assert [mixture.block for mixture in mixtures.blocks] == [1, 2]
    assert mixtures.blocks[0].consumer == "model.layers.1.mlp.experts.down_proj"
    assert mixtures.blocks[0].experts == "model.layers.1.mlp.experts"


def hash_routed() -> PreTrainedModel:
    with torch.device("meta"):
        config = DeepseekV4Config(num_hidden_layers=2, vocab_size=257)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: tiny_model("llama"), "llama family: its configuration does not say how many"),
        (lambda: tiny_model("llama4"), "llama4_text family: its experts are not called with what"),
        (lambda: with_sigmoid_router(2), "deepseek_v3 family: its router chooses among groups"),
        (hash_routed, "deepseek_v4 family: its router keeps the numbers of experts in a table"),
    ],
)
def test_other_families_are_refused_by_name(
    build: Callable[[], PreTrainedModel], line: str
) -> None:
    with pytest.raises(PrunerZeroError, match=f"cannot remove any of the {line}") as caught:
        find_mixtures(build())
    assert "\n" not in str(caught.value)


def test_as_many_experts_as_the_router_chooses_have_to_stay() -> None:
    model = tiny_model("mixtral")
    keeping(find_mixtures(model), {0: (0, 1), 1: (2, 3)}).cut(model)
    with pytest.raises(PrunerZeroError, match="none of the 2 experts of a block can go, since the"):
        find_mixtures(model)


def test_a_model_that_differs_from_its_configuration_is_refused() -> None:
    model = tiny_model("mixtral")
    block = find_blocks(model)[0]
    del block.get_submodule("mlp").experts
    with pytest.raises(PrunerZeroError, match="mixtral family: the experts of a block are not in"):
        find_mixtures(model)
