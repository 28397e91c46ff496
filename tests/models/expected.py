"""What there is to prune in each tiny model, written down by hand from the papers' drawings."""

from tests.tiny_models import EXPERT, EXPERTS, HIDDEN, INNER

Shape = tuple[int, int]

# Four heads of width 8, two of them for keys and values.
_QUERY, _KEYS = 32, 16

_ATTENTION: dict[str, Shape] = {
    "self_attn.q_proj": (_QUERY, HIDDEN),
    "self_attn.k_proj": (_KEYS, HIDDEN),
    "self_attn.v_proj": (_KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, _QUERY),
}


def _gated(place: str) -> dict[str, Shape]:
    return {
        f"{place}.gate_proj": (INNER, HIDDEN),
        f"{place}.up_proj": (INNER, HIDDEN),
        f"{place}.down_proj": (HIDDEN, INNER),
    }


def _experts(place: str, inner: int) -> dict[str, Shape]:
    ups = {f"{place}.gate_up_proj[{index}]": (2 * inner, HIDDEN) for index in range(EXPERTS)}
    downs = {f"{place}.down_proj[{index}]": (HIDDEN, inner) for index in range(EXPERTS)}
    return ups | downs


def _bloom_like(attention: str, query_key_value: int, inner: int) -> dict[str, Shape]:
    return {
        f"{attention}.query_key_value": (query_key_value, HIDDEN),
        f"{attention}.dense": (HIDDEN, HIDDEN),
        "mlp.dense_h_to_4h": (inner, HIDDEN),
        "mlp.dense_4h_to_h": (HIDDEN, inner),
    }


_LLAMA = _ATTENTION | _gated("mlp")

# Names inside the block and shapes (out, in), of models whose two blocks are alike.
_ALIKE: dict[str, dict[str, Shape]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"), _LLAMA),
    "phi3": {
        "self_attn.qkv_proj": (_QUERY + 2 * _KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, _QUERY),
        "mlp.gate_up_proj": (2 * INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    },
    "opt": {
        **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")},
        "fc1": (INNER, HIDDEN),
        "fc2": (HIDDEN, INNER),
    },
    "gpt2": {
        "attn.c_attn": (3 * HIDDEN, HIDDEN),
        "attn.c_proj": (HIDDEN, HIDDEN),
        "mlp.c_fc": (INNER, HIDDEN),
        "mlp.c_proj": (HIDDEN, INNER),
    },
    "gpt_neox": _bloom_like("attention", 3 * HIDDEN, INNER),
    "bloom": _bloom_like("self_attention", 3 * HIDDEN, 4 * HIDDEN),
    # One key and one value for all heads.
    "falcon": _bloom_like("self_attention", HIDDEN + 2 * 8, 4 * HIDDEN),
    # The routers of these mixtures stay as they are.
    **dict.fromkeys(("mixtral", "gpt_oss"), _ATTENTION | _experts("mlp.experts", INNER)),
}
BLOCKS: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {
    **{architecture: (block, block) for architecture, block in _ALIKE.items()},
    "qwen3_moe": (_LLAMA, _ATTENTION | _experts("mlp.experts", EXPERT)),
    "llama4": (
        _ATTENTION | _gated("feed_forward"),
        _ATTENTION | _experts("feed_forward.experts", INNER) | _gated("feed_forward.shared_expert"),
    ),
}

_PREFIX = {
    "opt": "model.decoder.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "bloom": "transformer.h",
    "falcon": "transformer.h",
}

# What a model does after its last block and before its head.
FINAL_NORM = {
    "opt": "model.decoder.final_layer_norm",
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "bloom": "transformer.ln_f",
    "falcon": "transformer.ln_f",
}


def expected_matrices(architecture: str) -> dict[str, Shape]:
    """Full name → (out, in) of every matrix in the two blocks of the tiny `architecture`."""
    prefix = _PREFIX.get(architecture, "model.layers")
    return {
        f"{prefix}.{index}.{name}": shape
        for index, block in enumerate(BLOCKS[architecture])
        for name, shape in block.items()
    }
