"""Random checkpoints of a given shape, written block by block: LLaMA's architecture, bf16.

Run: python benchmarks/shapes.py OUT --hidden 4096 --intermediate 11008 --blocks 32 --heads 32
Memory holds one block at a time, so a 13 GB folder takes a few hundred megabytes to make. The
weights are those of an initialised model: pruning it shows time and memory, not quality.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from pruner_zero.tensor_file import TensorFile, write_tensors

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA model."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def name(self) -> str:
        """A name for folders and tables."""
        return f"llama-{self.hidden}x{self.intermediate}x{self.blocks}"

    def config(self) -> LlamaConfig:
        """The configuration of a model with this shape."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


def make_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a random model of `shape` with a tokenizer to `folder`, unless it is there already."""
    if (folder / INDEX).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shape.config().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    parts = [_outside(shape), *(_block(shape, index) for index in range(shape.blocks))]
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(parts, 1):
        file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _weight(size, generator) for name, size in shapes.items()}
        write_tensors(file, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
        total += TensorFile(file).nbytes
    # Written last, so that a folder with an index is complete.
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes: it encodes any text, and needs no download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def _outside(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden),
        "model.norm.weight": (shape.hidden,),
        "lm_head.weight": (shape.vocabulary, shape.hidden),
    }


def _block(shape: Shape, index: int) -> dict[str, tuple[int, ...]]:
    narrow = shape.hidden // shape.heads * shape.kv_heads
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (narrow, shape.hidden),
        "self_attn.v_proj": (narrow, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    return {f"model.layers.{index}.{name}.weight": size for name, size in sizes.items()}


def _weight(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A norm of ones, or a matrix drawn like LLaMA's initialisation."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=0, help="as many as heads unless given")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = Shape(
        arguments.hidden,
        arguments.intermediate,
        arguments.blocks,
        arguments.heads,
        arguments.kv_heads or arguments.heads,
        arguments.vocabulary,
    )
    print(make_checkpoint(shape, arguments.output, arguments.seed))


if __name__ == "__main__":
    main()
