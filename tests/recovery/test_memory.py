"""Recovery of large models in 80 GB, counted on tensors without memory."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import Qwen2Config, Qwen2ForCausalLM

from pruner_zero.models.structure import find_matrices, parameters_of
from pruner_zero.recovery.kept_weights import float32_weights
from pruner_zero.recovery.train import FORWARD_TOKENS

GIB = 2**30
# Of 80 GB a GPU has about 74.5 GiB; a part is for the logits' loss and for what torch reserves.
ROOM = 70.0
HALF = torch.bfloat16
QWEN_1_5B = Qwen2Config(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def size(tensors: Iterable[Tensor]) -> float:
    """GiB of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / GIB


def saved_for_backward(model: nn.Module) -> float:
    """GiB that a forward pass over FORWARD_TOKENS tokens keeps for its backward pass."""
    kept: dict[int, Tensor] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    tokens = torch.zeros(1, FORWARD_TOKENS, dtype=torch.long, device="meta")
    # A mask of its own, since the library reads values of the usual one.
    mask = torch.zeros(1, 1, FORWARD_TOKENS, FORWARD_TOKENS, device="meta")
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, attention_mask=mask, use_cache=False)
    return sum(kept[key].untyped_storage().nbytes() for key in kept.keys() - weights) / GIB


def test_it_fits_without_checkpoints_of_activations() -> None:
    """1.5B with its dense teacher in bfloat16.

    A backward pass of 1024 tokens keeps 7 to 15 GiB, so no block need be computed twice.
    """
    with torch.device("meta"):
        model = Qwen2ForCausalLM(QWEN_1_5B).to(HALF).eval()
    parameters = parameters_of(find_matrices(model))
    teacher = size(model.parameters())
    # Half of the weights in float32: values, gradients, two moments, the best so far, and their
    # positions in int32.
    trained = 6 * 4 * sum(parameter.numel() for parameter in parameters.values()) / 2 / GIB
    with float32_weights(model):
        weights, activations = size(model.parameters()), saved_for_backward(model)
    assert 6 < activations < 16
    assert teacher + weights + trained + activations < ROOM
