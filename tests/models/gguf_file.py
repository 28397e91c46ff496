"""A tiny model as a GGUF file, written as llama.cpp's converter writes it."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import tiny_tokenizer

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GEMMA = {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(
    model: PreTrainedModel, path: Path, tokenizer: Any = None, **tensors: NDArray[np.float32]
) -> None:
    """Write the llama, qwen2 or gemma3 `model` with the tiny tokenizer or another, in fp32.

    tensors: others to write, by name, with _ for the dots.
    """
    config = model.config
    kind = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_license("mit")
    writer.add_tags(["tiny", "random"])
    writer.add_chat_template("{{ messages }}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if kind == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    _add_tokens(writer, tokenizer or tiny_tokenizer(), config)
    for name, tensor in model.state_dict().items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            writer.add_tensor(_gguf_name(name, kind), _stored(name, tensor, model))
    for name, array in tensors.items():
        writer.add_tensor(name.replace("__", "."), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: gguf.GGUFWriter, tokenizer: Any, config: Any) -> None:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = bool(spec["model"]["byte_fallback"])
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = {each["id"] for each in spec["added_tokens"]}
    types = gguf.TokenType
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_token_list(names)
    kinds = [types.CONTROL if number in special else types.NORMAL for number in range(len(names))]
    writer.add_token_types(kinds)
    # Without merges, transformers makes them of the tokens and their scores.
    writer.add_token_scores([-float(number) for number in range(len(names))])
    if spec["model"]["merges"] and not pieces:
        writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_unk_token_id(0)


def _gguf_name(name: str, kind: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, suffix = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{suffix}"
    block, inside = stem.removeprefix("model.layers.").split(".", 1)
    names = {**_NAMES, **(_GEMMA if kind == "gemma3" else {})}
    return f"blk.{block}.{names[inside]}.{suffix}"


def _stored(name: str, tensor: Tensor, model: PreTrainedModel) -> NDArray[np.float32]:
    """llama.cpp keeps the two halves of each rotary pair of a llama next to each other.

    It keeps the factors of Gemma's norms, whose weights are what is added to 1.
    """
    array: NDArray[np.float32] = tensor.float().numpy()
    if model.config.model_type == "gemma3_text":
        return array + np.float32(1) if "norm" in name else array
    if model.config.model_type != "llama":
        return array
    heads = {
        "q_proj": model.config.num_attention_heads,
        "k_proj": model.config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return array
    rows, columns = array.shape
    paired = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(paired.reshape(rows, columns))
