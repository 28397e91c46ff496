"""The GGUF file that a model was read from, and its tensors as such files store them."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.choices import GgufType
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import is_gguf
from pruner_zero.models.block_sizes import FIELDS, block_sizes
from pruner_zero.models.deci import BLOCK_SIZES, DECI, FAMILIES, family_of, in_pairs
from pruner_zero.models.gguf_header import GgufHeader, read_header
from pruner_zero.models.load import PREFIX, installed_file
from pruner_zero.models.transformers_private import gguf_reading
from pruner_zero.result_folder import GGUF_RECORDS

Array = NDArray[Any]
INSTEAD = "write a folder and convert it with convert_hf_to_gguf.py of llama.cpp"
# The keys of sizes, after the architecture, and the fields of the configuration that have them.
SIZES: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "vocab_size": "vocab_size",
    **BLOCK_SIZES,
}
# Tensors that transformers does not read, and that pruning leaves as they are.
_COPIED = frozenset({"rope_freqs.weight"})


@dataclass(frozen=True)
class GgufSource:
    """What a pruned GGUF file takes over from the file of the dense model, known as `name`.

    copied: tensors that are no part of the model in transformers. names: of the dense model's
    tensors, by those in the file. store: gives a tensor, from its name, its value in transformers
    and the configuration, as the file stores it.
    """

    name: str
    header: GgufHeader
    copied: Mapping[str, Array]
    names: Mapping[str, str]
    store: Callable[[str, Array, Any], Array]

    @property
    def records(self) -> dict[str, Any]:
        """What this program wrote on earlier runs into the file, by key."""
        fields = self.header.fields.items()
        return {key: json.loads(text) for key, (text, *_) in fields if key.startswith(GGUF_RECORDS)}

    def multiple(self, config: Any) -> int:
        """A multiple of this many channels stays in each block of the smaller file.

        That is 256 in the place of 32 where the file holds k-quants, whose rows are in blocks of
        256, and the model's own numbers are multiples of it.
        """
        tensors = self.header.tensors.values()
        quants = any(gguf.GGML_QUANT_SIZES[tensor.type][0] == 256 for tensor in tensors)
        own = (block.get("intermediate_size", 0) for block in block_sizes(config))
        return 256 if quants and all(size % 256 == 0 for size in own) else 32

    def tensors(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The tensors of `model`, dense or pruned, by their names in the file, in its order.

        Raises PrunerZeroError where a tensor of the file or of the model is not one of the other's,
        or the model's is larger.
        """
        state, tensors = model.state_dict(), {}
        for name, stored in self.header.tensors.items():
            block = re.match(r"blk\.(\d+)\.", name)
            if name in self.copied or (block and int(block[1]) >= model.config.num_hidden_layers):
                continue
            tensor = state.get(self.names.get(name, ""))
            if tensor is None:
                raise PrunerZeroError(f"{name} of {self.name} is not read: {INSTEAD}")
            sizes = tuple(tensor.shape)
            # Where sizes differ, the block in the place of one that was dropped may be larger.
            larger = self.header.architecture != DECI and np.greater(sizes, stored.shape).any()
            if larger or len(sizes) != len(stored.shape):
                raise PrunerZeroError(
                    f"{name} of {self.name} has the shape {stored.shape}, and the model's "
                    f"{self.names[name]} has {sizes}: {INSTEAD}"
                )
            tensors[name] = tensor
        # A tied head has the address of the embedding.
        written = {tensor.data_ptr() for tensor in tensors.values()}
        for parameter, tensor in state.items():
            if tensor.data_ptr() not in written:
                raise PrunerZeroError(f"{self.name} has no place for {parameter}: {INSTEAD}")
        return tensors


def described_size(config: Any, field: str, architecture: str) -> int | list[int] | None:
    """The `field` of the configuration; in `deci` files, by block where blocks have it."""
    if architecture == DECI and field in FIELDS:
        return [block[field] for block in block_sizes(config)]
    size: int | None = getattr(config, field, None)
    return size


def why_alike(source: GgufSource, fields: Collection[str]) -> str:
    """Why a file after `source` cannot have blocks of different sizes; empty where it can.

    fields: of the configuration, those that may differ.
    """
    family = family_of(source.header, source.name)
    if family not in FAMILIES:
        return f"{source.name} is a {family}, and in its GGUF files all blocks have equal sizes"
    biased = any(key.endswith("attn_q.bias") for key in source.header.tensors)
    if biased and "num_attention_heads" in fields:
        return (
            f"{source.name} has biases of queries, and runtimes of its GGUF files need all heads "
            "then"
        )
    return ""


def source_of(
    output: Path | None, kind: GgufType | None, name: str | None, other: str = ""
) -> Path | None:
    """The GGUF file after which `output` is made; None where it is none, or there is no output.

    kind: the type of matrices that was asked for. name: of the model that is changed, None for an
    object. other: an option that was given and needs a folder. Raises PrunerZeroError for what
    cannot be combined with `output`.
    """
    if output is None or not is_gguf(output):
        if kind:
            raise PrunerZeroError(
                "--gguf-type is for an output whose name ends in .gguf: leave it out"
            )
        return None
    if name is None or other:
        given = other or "a model object"
        raise PrunerZeroError(f"{given} cannot be combined with a .gguf output: write a folder")
    if name.startswith(PREFIX):
        return installed_file(name)
    if not is_gguf(Path(name)):
        raise PrunerZeroError(
            f"a .gguf output is made after a .gguf file, and {name} is none: {INSTEAD}"
        )
    return Path(name)


def read_source(
    path: Path, name: str, model: PreTrainedModel, structure: str | None = None
) -> GgufSource:
    """Read from the file `path` all but the weights of the dense `model`, known as `name`.

    structure: the units that will be removed. Raises PrunerZeroError where the smaller model could
    not be written as such a file: an architecture whose tensors transformers changes in a way that
    is not known here, a tensor that is not the model's, sizes that differ between blocks.
    """
    header = read_header(path, name)
    architecture, family = header.architecture, family_of(header, name)
    copied = {
        key: np.array(np.memmap(path, "<f4", "r", tensor.start, tensor.shape))
        for key, tensor in header.tensors.items()
        if key in _COPIED and tensor.type == gguf.GGMLQuantizationType.F32
    }
    processor, names = gguf_reading(model, family)
    if processor not in _INVERSES:
        raise PrunerZeroError(
            f"{name} is a {architecture}, which cannot be written as a GGUF file: {INSTEAD}"
        )
    for suffix, field in SIZES.items():
        value = header.fields.get(f"{architecture}.{suffix}", (None,))[0]
        size = described_size(model.config, field, architecture)
        if value != size and (suffix, value) != ("vocab_size", None):
            raise PrunerZeroError(
                f"{architecture}.{suffix} of {name} is {value}, and the model's {field} is {size}: "
                f"{INSTEAD}"
            )
    if structure == "blocks" and len(set(getattr(model.config, "layer_types", None) or ())) > 1:
        raise PrunerZeroError(
            f"the numbers of the blocks decide their kinds of attention in a {architecture} GGUF "
            "file: choose another --structure than blocks, or write a folder"
        )
    store = in_pairs if architecture == DECI else _INVERSES[processor]
    source = GgufSource(name, header, copied, names, store)
    source.tensors(model)
    return source


def _unchanged(name: str, array: Array, config: Any) -> Array:
    return array


def _from_one(name: str, array: Array, config: Any) -> Array:
    """Weights of norms are stored as factors, and transformers has what they add to 1."""
    return array + np.float32(1) if "norm.weight" in name else array


# By the name of transformers' class, the inverse of what it does to tensors as it reads them.
_INVERSES: Mapping[str, Callable[[str, Array, Any], Array]] = {
    "TensorProcessor": _unchanged,
    "LlamaTensorProcessor": in_pairs,
    "Gemma2TensorProcessor": _from_one,
    "NemotronTensorProcessor": _from_one,
}
