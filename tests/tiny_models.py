"""Small random language models, one for every kind of block that the program supports."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pruner_zero.models.matrices import find_blocks
from pruner_zero.text.token_windows import Windows

# The vocabulary of tests/tiny.py's tokenizer. All widths differ from each other, so that a
# matrix that is seen the wrong way round shows.
VOCABULARY, HIDDEN, INNER, EXPERT, EXPERTS, POSITIONS = 257, 32, 48, 24, 8, 64
SLIDING_WINDOW = 6

# Blocks attend to SLIDING_WINDOW tokens here, in all or in every other one of them.
SLIDING = ("mistral", "qwen2", "gemma2", "gemma3", "phi3", "gpt_oss")
# Blocks pass on more than their outputs here: the third and later ones take keys and values.
SHARING = "gemma4"
# The experts of one block are kept in one 3-D parameter here.
FUSED_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "llama4")


def tiny_model(architecture: str, seed: int = 0, blocks: int = 2) -> PreTrainedModel:
    """A random model of `architecture` in evaluation mode, fp32; `seed` decides its weights."""
    config = {**CONFIGURATIONS, SHARING: _sharing}[architecture](blocks)
    model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms stay near what they are initialised to, or the signal dies in two blocks.
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.copy_(noise).mul_(0.15)
    return model.eval()


def tiny_windows(windows: int = 3, tokens: int = 11, seed: int = 1) -> torch.Tensor:
    """Random windows (windows, tokens) int64, by default longer than SLIDING_WINDOW."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (windows, tokens), generator=generator)


def windows_of(tokens: torch.Tensor) -> Windows:
    """`tokens` (n, seqlen) as text that a model wrote."""
    return Windows(tokens, "tiny", None, "none", None, "sampled")


def _llama_like(
    config: type[PreTrainedConfig], **options: object
) -> Callable[[int], PreTrainedConfig]:
    return lambda blocks: config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **options,
    )


def _alternating(
    config: type[PreTrainedConfig], **options: object
) -> Callable[[int], PreTrainedConfig]:
    def build(blocks: int) -> PreTrainedConfig:
        kinds = ["sliding_attention", "full_attention"] * blocks
        return _llama_like(
            config, sliding_window=SLIDING_WINDOW, layer_types=kinds[:blocks], **options
        )(blocks)

    return build


def _gpt_like(
    config: type[PreTrainedConfig], **options: object
) -> Callable[[int], PreTrainedConfig]:
    return lambda blocks: config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **options,
    )


CONFIGURATIONS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "llama": _llama_like(LlamaConfig),
    "mistral": _llama_like(MistralConfig, sliding_window=SLIDING_WINDOW),
    "qwen2": _alternating(Qwen2Config, use_sliding_window=True, tie_word_embeddings=True),
    "qwen3": _llama_like(Qwen3Config),
    "gemma2": _alternating(Gemma2Config, query_pre_attn_scalar=8),
    "gemma3": _alternating(Gemma3TextConfig, query_pre_attn_scalar=8),
    "phi3": _llama_like(Phi3Config, sliding_window=SLIDING_WINDOW),
    "opt": _gpt_like(
        OPTConfig, ffn_dim=INNER, word_embed_proj_dim=HIDDEN, max_position_embeddings=POSITIONS
    ),
    "gpt2": _gpt_like(GPT2Config, n_inner=INNER, n_positions=POSITIONS),
    "gpt_neox": _gpt_like(
        GPTNeoXConfig, intermediate_size=INNER, max_position_embeddings=POSITIONS
    ),
    "bloom": _gpt_like(BloomConfig),
    "falcon": _gpt_like(FalconConfig),
    "mixtral": _llama_like(
        MixtralConfig, num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=None
    ),
    # Its first block is dense: blocks of one model need not be alike.
    "qwen3_moe": _llama_like(
        Qwen3MoeConfig,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=EXPERT,
        mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    # Its experts are stored (expert, in, out), as are those of llama4, which lie in a module
    # that does not say so and are multiplied all at once.
    "gpt_oss": _alternating(
        GptOssConfig,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "llama4": _llama_like(
        Llama4TextConfig,
        intermediate_size_mlp=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=SLIDING_WINDOW,
    ),
}

ARCHITECTURES = tuple(CONFIGURATIONS)


def _sharing(blocks: int) -> PreTrainedConfig:
    """All blocks but the first two take keys and values of earlier blocks of their kind."""
    return _alternating(
        Gemma4TextConfig,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        num_global_key_value_heads=2,
        global_head_dim=8,
        num_kv_shared_layers=max(0, blocks - 2),
    )(blocks)


@contextmanager
def first_token_constant(model: nn.Module) -> Iterator[None]:
    """Within the context, what a block gives for the first token of a window is a constant."""

    def constant(_block: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.cat([hidden[:, :1].detach(), hidden[:, 1:]], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = [block.register_forward_hook(constant) for block in find_blocks(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
