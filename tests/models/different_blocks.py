"""Tiny models whose blocks have different sizes, cut by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruner_zero.models.block_sizes import block_sizes, head_width, set_block_sizes
from pruner_zero.models.matrices import find_blocks

# The channels and key-value heads that stay in each of three blocks of a tiny model.
KEPT = ((48, 2), (32, 1), (44, 2))


@torch.no_grad()
def cut_blocks(model: PreTrainedModel, kept: Sequence[tuple[int, int]] = KEPT) -> None:
    """Keep the last channels and key-value heads of each block, in place."""
    blocks: Sequence[Any] = find_blocks(model)
    width, sizes = head_width(model.config), block_sizes(model.config)
    for block, (channels, heads), size in zip(blocks, kept, sizes, strict=True):
        group = size["num_attention_heads"] // size["num_key_value_heads"]
        mlp, attention = block.mlp, block.self_attn
        for linear in (mlp.gate_proj, mlp.up_proj):
            _keep_last(linear, 0, channels)
        _keep_last(mlp.down_proj, 1, channels)
        _keep_last(attention.q_proj, 0, heads * group * width)
        _keep_last(attention.k_proj, 0, heads * width)
        _keep_last(attention.v_proj, 0, heads * width)
        _keep_last(attention.o_proj, 1, heads * group * width)
        size["intermediate_size"] = channels
        size["num_key_value_heads"], size["num_attention_heads"] = heads, heads * group
    set_block_sizes(model.config, sizes)


def _keep_last(linear: nn.Linear, axis: int, count: int) -> None:
    for name, parameter in list(linear.named_parameters()):
        if parameter.ndim > axis:
            start = parameter.shape[axis] - count
            setattr(linear, name, nn.Parameter(parameter.narrow(axis, start, count).clone()))
    linear.out_features, linear.in_features = linear.weight.shape
