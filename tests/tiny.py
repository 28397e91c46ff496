"""Small real things for tests: a text, a tokenizer that needs no network, a hash of a model."""

from hashlib import sha256

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from pruner_zero.progress import Progress

FOX = "The quick brown fox jumps over the lazy dog. " * 5


class Notes(Progress):
    """Keeps the remarks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers of `model` with their names."""
    digest = sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tiny_tokenizer(model_max_length: int = 16, begins: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with one token a byte and a BOS, 257 in all; any text encodes.

    begins: whether it puts the BOS before every text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        bos = [("<s>", 0)]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", model_max_length=model_max_length
    )
