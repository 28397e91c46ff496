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


def _bloom_like(query_key_value: int, inner: int) -> dict[str, Shape]:
    return {
        "query_key_value": (query_key_value, HIDDEN),
        "dense": (HIDDEN, HIDDEN),
        "mlp.dense_h_to_4h": (inner, HIDDEN),
        "mlp.dense_4h_to_h": (HIDDEN, inner),
    }


def _inside(attention: str, names: dict[str, Shape]) -> dict[str, Shape]:
    return {
        name if name.startswith("mlp") else f"{attention}.{name}": shape
        for name, shape in names.items()
    }


_LLAMA = _ATTENTION | _gated("mlp")

# For each of the two blocks: names inside the block and shapes (out, in).
BLOCKS: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"), (_LLAMA, _LLAMA)),
    "phi3": (
        _phi3 := {
            "self_attn.qkv_proj": (_QUERY + 2 * _KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, _QUERY),
            "mlp.gate_up_proj": (2 * INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        },
        _phi3,
    ),
    "opt": (
        _opt := {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (HIDDEN, HIDDEN),
            "self_attn.v_proj": (HIDDEN, HIDDEN),
            "self_attn.out_proj": (HIDDEN, HIDDEN),
            "fc1": (INNER, HIDDEN),
            "fc2": (HIDDEN, INNER),
        },
        _opt,
    ),
    "gpt2": (
        _gpt2 := {
            "attn.c_attn": (3 * HIDDEN, HIDDEN),
            "attn.c_proj": (HIDDEN, HIDDEN),
            "mlp.c_fc": (INNER, HIDDEN),
            "mlp.c_proj": (HIDDEN, INNER),
        },
        _gpt2,
    ),
    "gpt_neox": (_neox := _inside("attention", _bloom_like(3 * HIDDEN, INNER)), _neox),
    "bloom": (_bloom := _inside("self_attention", _bloom_like(3 * HIDDEN, 4 * HIDDEN)), _bloom),
    # One key and one value for all heads.
    "falcon": (
        _falcon := _inside("self_attention", _bloom_like(HIDDEN + 2 * 8, 4 * HIDDEN)),
        _falcon,
    ),
    # The routers of these mixtures stay as they are.
    "mixtral": (_mixtral := _ATTENTION | _experts("mlp.experts", INNER), _mixtral),
    "qwen3_moe": (_LLAMA, _ATTENTION | _experts("mlp.experts", EXPERT)),
    "gpt_oss": (_mixtral, _mixtral),
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
