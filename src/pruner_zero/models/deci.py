"""GGUF files of the architecture `deci`, in llama.cpp the llama whose blocks have their own sizes.

transformers does not know it. A file of this program names the architecture of the file that it was
made after, as which transformers reads its metadata.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import causal_class, head_width, set_block_sizes
from pruner_zero.models.gguf_header import Field, GgufHeader
from pruner_zero.models.transformers_private import gguf_reading
from pruner_zero.result_folder import GGUF_RECORDS

DECI = "deci"
# The key of the architecture that the model had, as JSON text like all records.
GGUF_FAMILY = f"{GGUF_RECORDS}architecture"
# Architectures that `deci` computes the same as.
FAMILIES = frozenset({"llama", "qwen2"})
# The keys of sizes that a block has, after the architecture, and their fields.
BLOCK_SIZES: Mapping[str, str] = {
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}


def family_of(header: GgufHeader, name: str) -> str:
    """The architecture of a file, where it is `deci` that of the file that it was made after.

    Raises PrunerZeroError for a `deci` file of another program, known as `name`.
    """
    if header.architecture != DECI:
        return header.architecture
    family = json.loads(header.fields.get(GGUF_FAMILY, ("null",))[0])
    if family not in FAMILIES:
        raise PrunerZeroError(
            f"{name} is a deci file that this program did not write, and its family is not known: "
            "give the folder of the model"
        )
    return str(family)


def renamed(fields: Mapping[str, Field], before: str, after: str) -> dict[str, Field]:
    """The metadata `fields` of the architecture `before` under the keys of `after`."""
    return {
        f"{after}.{key.removeprefix(f'{before}.')}" if key.startswith(f"{before}.") else key: field
        for key, field in fields.items()
    }


@contextmanager
def described(header: GgufHeader, name: str) -> Iterator[Path]:
    """Within the context, a file with the metadata of a `deci` file under the keys of its family.

    It has no weights, and describes blocks of equal sizes.
    """
    family = family_of(header, name)
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        writer = gguf.GGUFWriter(path, family)
        for key, (value, *types) in renamed(header.fields, DECI, family).items():
            suffix = key.removeprefix(f"{family}.")
            if suffix in BLOCK_SIZES:
                # A divisor of the model's width, which the family may ask of the number of heads.
                width = header.fields[f"{DECI}.embedding_length"][0]
                writer.add_uint32(key, int(np.gcd(max(value), width)))
            elif key not in ("general.architecture", "general.alignment"):
                writer.add_key_value(key, value, *types)
        if "output.weight" in header.tensors:
            # Its name says that the head is not the embedding.
            writer.add_tensor("output.weight", np.zeros(1, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield path


def set_described_sizes(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Give the blocks of `config`, which transformers read of `described`, their sizes."""
    arrays = {field: header.fields[f"{DECI}.{suffix}"][0] for suffix, field in BLOCK_SIZES.items()}
    blocks = zip(*arrays.values(), strict=True)
    set_block_sizes(config, [dict(zip(arrays, sizes, strict=True)) for sizes in blocks])


def read_tensors(
    path: Path, header: GgufHeader, config: PreTrainedConfig, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The weights of the `deci` file `path` by their names in transformers, in fp32 for None."""
    with torch.device("meta"):
        model = causal_class(config)(config)
    _, names = gguf_reading(model, "llama")
    tensors = {}
    for name, tensor in header.tensors.items():
        if name in names:
            shape = quant_shape_to_byte_shape(tensor.shape, tensor.type)
            stored = np.memmap(path, np.uint8, "r", tensor.start, shape)
            array = in_halves(name, gguf.dequantize(stored, tensor.type), config)
            tensors[names[name]] = torch.tensor(array, dtype=dtype)
    return tensors


def in_pairs(name: str, array: NDArray[Any], config: PreTrainedConfig) -> NDArray[Any]:
    """llama.cpp keeps the two halves of each rotary pair next to each other."""
    return _transposed(name, array, (2, head_width(config) // 2))


def in_halves(name: str, array: NDArray[Any], config: PreTrainedConfig) -> NDArray[Any]:
    """The inverse of `in_pairs`."""
    return _transposed(name, array, (head_width(config) // 2, 2))


def _transposed(name: str, array: NDArray[Any], sizes: tuple[int, int]) -> NDArray[Any]:
    """`array` with the rows of each head, in a matrix of `sizes`, in the order of its columns."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return array
    rows = array.reshape(-1, *sizes, *array.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)
