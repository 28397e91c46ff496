"""A causal language model with its tokenizer, as every other room takes it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.choices import Dtype
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.models.blocks import Activations, BlockCalls, record_block_calls
from pruner_zero.models.structure import Matrix, find_blocks

# What a configuration says about where and how it was saved, and not about what is computed.
_NOT_COMPUTED = {"_name_or_path", "architectures", "dtype", "transformers_version"}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the name it was asked by."""

    model: PreTrainedModel
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        """Where the embeddings are and the loss is taken; blocks may be elsewhere too."""
        device: torch.device = self.model.device
        return device

    def fingerprint(self) -> str:
        """The SHA-256 of all weights and of the configuration: what a cache key stands on.

        Two models of equal weights that compute differently, by another rotary base say,
        differ in it; saving and loading keeps it.
        """
        config = self.model.config.to_dict()
        computed = {key: value for key, value in config.items() if key not in _NOT_COMPUTED}
        text = json.dumps(computed, sort_keys=True, default=str)
        weights = _digest(self.weights())
        return sha256(f"{weights}:{text}".encode()).hexdigest()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers with their names, in the order of the state dict."""
        yield from self.model.state_dict().items()

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """One decoder block with its weights in memory, for as long as the context lasts."""
        return nullcontext(find_blocks(self.model)[index])

    def outside(self) -> AbstractContextManager[None]:
        """All that is not in a block (embeddings, last norm, head) in memory, likewise."""
        return nullcontext()

    def block_calls(self, windows: Tensor, hidden: Activations | None = None) -> BlockCalls:
        """What `record_block_calls` learns of this model."""
        return record_block_calls(self.model, windows, hidden)

    def changed(self, index: int, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
        """What has to be kept of a loaded block whose `matrices` were changed, by name."""
        del index
        return {matrix.parameter_name: matrix.parameter.data for matrix in matrices}


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers of `model` with their names and dtypes."""
    return _digest(model.state_dict().items())


def _digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = sha256()
    for name, tensor in weights:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        data: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(data)
    return digest.hexdigest()


def check_dtype(text: str) -> Dtype:
    """`text` as a dtype name. Raises PrunerZeroError naming a near one."""
    for dtype in get_args(Dtype):
        if dtype == text:
            return cast(Dtype, dtype)
    raise PrunerZeroError(f"no dtype '{text}': {did_you_mean(text, get_args(Dtype))}")


def check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    """Raise PrunerZeroError where windows `tokens` (n, seqlen) do not fit `model`.

    A token needs a row in the embedding, and a position one in a learned table of positions
    (GPT-2, OPT); rotary models have no such limit.
    """
    if not len(tokens):
        return
    embedding = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    largest = int(tokens.max())
    if largest >= rows:
        raise PrunerZeroError(
            f"the tokenizer produces token {largest} but the model embeds only {rows}: "
            "use the tokenizer that belongs to the model"
        )
    for name, table in model.named_modules():
        learned = isinstance(table, torch.nn.Embedding) and table is not embedding
        if learned and name.endswith(("wpe", "positions", "position_embeddings")):
            positions = table.num_embeddings - getattr(table, "offset", 0)
            if tokens.shape[-1] > positions:
                raise PrunerZeroError(
                    f"windows of {tokens.shape[-1]} tokens are longer than the {positions} "
                    f"positions that the model has learned: choose --seqlen {positions} or less"
                )
