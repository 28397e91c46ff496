"""A causal language model with its tokenizer: the form in which all subpackages take models."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import (
    Activations,
    BlockCalls,
    check_block_calls,
    record_block_calls,
)
from pruner_zero.models.matrices import Matrix, find_blocks
from pruner_zero.progress import note

# transformers 5.24 renamed the argument that takes the keys and values of earlier tokens.
_CACHE_NAMES = ("cache", "past_key_values")
# Fields of a configuration that say how it was saved and change nothing that is computed.
_NOT_COMPUTED = {"_name_or_path", "architectures", "dtype", "transformers_version"}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the name it was loaded by.

    on_disk: whether weights are in memory only within the contexts of the methods. Those methods
    do nothing where all weights are in memory.
    """

    on_disk: ClassVar[bool] = False

    model: PreTrainedModel
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where the loss is computed; blocks may be on others."""
        device: torch.device = self.model.device
        return device

    def fingerprint(self) -> str:
        """The SHA-256 of all weights and of the configuration, for keys of caches.

        Models of equal weights that compute differently, such as by another rotary base, have
        different ones. Saving and loading does not change it.
        """
        config = self.model.config.to_dict()
        computed = {key: value for key, value in config.items() if key not in _NOT_COMPUTED}
        digest = sha256(json.dumps(computed, sort_keys=True, default=str).encode())
        for name, tensor in self.weights():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            data: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(data)
        return digest.hexdigest()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers with their names, in the order of the state dict."""
        yield from self.model.state_dict().items()

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """One decoder block, its weights in memory within the context."""
        return nullcontext(find_blocks(self.model)[index])

    def outside(self) -> AbstractContextManager[None]:
        """Within the context, parameters outside the blocks (embeddings, head) are in memory."""
        return nullcontext()

    def block_calls(self, windows: Tensor, hidden: Activations | None = None) -> BlockCalls:
        """What `record_block_calls` records of this model, checked by `check_block_calls`."""
        check_block_calls(self.model, windows)
        return record_block_calls(self.model, windows, hidden)

    def changed(self, index: int, matrices: Sequence[Matrix]) -> dict[str, Tensor]:
        """The tensors to save, by name, of a loaded block whose `matrices` were changed."""
        del index
        return {matrix.parameter_name: matrix.parameter.data for matrix in matrices}

    def release(self) -> None:
        """Return freed memory to the system."""

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether memory has room for all weights in `dtype`, and a quarter more."""
        del dtype
        return True

    def in_memory(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Within the context, all weights are in memory; those from the disk in `dtype`."""
        del dtype
        return nullcontext()

    def collect_gradients(self, windows: Tensor, statistics: Mapping[str, Any], store: Any) -> bool:
        """Fill `store` with the statistics of gradients over `windows` (n, tokens), from the disk.

        False where the weights are in memory, and nothing was done.
        """
        del windows, statistics, store
        return False

    def whole(
        self, blocks: Sequence[Path], folder: Path
    ) -> AbstractContextManager["LanguageModel"]:
        """The model with its blocks from the files `blocks`, in memory within the context."""
        del blocks, folder
        return nullcontext(self)

    def save_blocks(self, blocks: Sequence[Path], folder: Path, config: Any = None) -> None:
        """Save a model on disk with the weights of its blocks from the files `blocks`."""
        raise NotImplementedError("save_model saves a model in memory")


def check_tokens(model: PreTrainedModel, tokens: Tensor, generated: int = 0) -> None:
    """Raise PrunerZeroError where windows `tokens` (n, seqlen) do not fit `model`.

    Every token needs a row of the embedding and of the head, and every position one of the table
    of positions where a model has learned one (GPT-2, OPT). generated: tokens that the model adds
    to each window.
    """
    if not len(tokens):
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    largest = int(tokens.max())
    for table, does in ((embedding, "model embeds"), (head, "model's head scores")):
        if table is not None and largest >= (rows := table.weight.shape[0]):
            raise PrunerZeroError(
                f"the tokenizer produces token {largest} but the {does} only {rows}: "
                "use the tokenizer that belongs to the model"
            )
    length = tokens.shape[-1] + generated
    for name, table in model.named_modules():
        learned = isinstance(table, torch.nn.Embedding) and table is not embedding
        if learned and name.endswith(("wpe", "positions", "position_embeddings")):
            positions = table.num_embeddings - getattr(table, "offset", 0)
            if length > positions:
                raise PrunerZeroError(
                    f"windows of {length} tokens are longer than the {positions} positions that "
                    f"the model has learned: choose --seqlen {positions - generated} or less"
                )


def note_long_windows(model: PreTrainedModel, seqlen: int) -> None:
    """Note where windows of `seqlen` tokens are longer than the context of `model`."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < seqlen:
        note(
            f"windows of {seqlen} tokens are longer than the model's context of {context} "
            f"(max_position_embeddings): --seqlen {context} or less would fit"
        )


def cache_arguments(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any] | None:
    """Arguments that make `model` use `cache` for keys and values and return only the last logits.

    None where the model keeps no keys and values.
    """
    accepted = signature(model.forward).parameters
    names = [name for name in _CACHE_NAMES if name in accepted]
    if not names:
        return None
    last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    return {names[0]: cache, "use_cache": True, **last}
