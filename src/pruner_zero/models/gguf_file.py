"""A pruned model as a GGUF file, made after the GGUF file that the model was read from."""

import errno
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

from pruner_zero.choices import GgufType
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import sync, writing
from pruner_zero.models.block_sizes import has_code, head_width
from pruner_zero.models.deci import DECI, GGUF_FAMILY, family_of, in_pairs, renamed
from pruner_zero.models.gguf_header import TOKENS, Field
from pruner_zero.models.gguf_source import (
    INSTEAD,
    SIZES,
    GgufSource,
    described_size,
    why_alike,
)
from pruner_zero.progress import note

# The sizes of a head, which follow from the number of heads where they are not given.
_HEAD = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_MERGES = "tokenizer.ggml.merges"
_PER_TOKEN = (TOKENS, "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
# Keys that are written anew, or hold for the bytes of the source alone.
_OF_SOURCE = re.compile(
    r"(quantize|pruner_zero)\..*|"
    r"general\.(architecture|alignment|file_type|size_label|quantization_version)"
)


def save_gguf(
    source: GgufSource,
    model: PreTrainedModel,
    file: Path,
    asked: GgufType | None,
    stay: Sequence[int],
    records: Mapping[str, Any],
) -> None:
    """Write the pruned `model` as `file`, with the metadata of `source`, its sizes and tokens anew.

    asked: the type of the matrices, F16 where None; those whose rows are no whole blocks of it are
    F16, and vectors are F32. stay: the tokens that stayed by their numbers, empty where all did.
    records: those of the runs, by their keys, kept as JSON text. Raises PrunerZeroError where a
    tensor does not fit `source`, and where the disk is full.
    """
    if getattr(model.generation_config, "suppress_tokens", None):
        note(
            "a .gguf file cannot ban tokens: a runtime may write tokens of other scripts; a folder "
            "keeps the ban"
        )
    kind: GgufType = asked or "F16"
    architecture, store = source.header.architecture, source.store
    if has_code(model.config):
        if why := why_alike(source, model.config.per_layer_attributes):
            raise PrunerZeroError(f"{why}: write a folder")
        architecture, store = DECI, in_pairs
    if architecture == DECI:
        records = {**records, GGUF_FAMILY: family_of(source.header, source.name)}
    fields = _resized(source, model.config, architecture)
    if stay:
        fields = _cut_tokens(fields, stay)
    tensors = source.tensors(model)
    tokens, rows = len(fields[TOKENS][0]), model.get_input_embeddings().weight.shape[0]
    if tokens != rows:
        raise PrunerZeroError(
            f"{source.name} has {tokens} tokens, and the model embeds {rows}: {INSTEAD}"
        )
    writer = gguf.GGUFWriter(file, architecture)
    # First, where `check_output` finds them.
    for key, record in records.items():
        writer.add_string(key, json.dumps(record))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, (value, *types) in fields.items():
        # The writer refuses empty arrays.
        if value != [] and not _OF_SOURCE.fullmatch(key):
            writer.add_key_value(key, value, *types)
    kinds = {name: _kind(tensor.shape, kind) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        items, nbytes = gguf.GGML_QUANT_SIZES[kinds[name]]
        size = tensor.numel() // items * nbytes
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kinds[name])
    for name, array in source.copied.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    with writing(file):
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                array = store(name, tensor.detach().float().cpu().numpy(), model.config)
                writer.write_tensor_data(gguf.quantize(array, kinds[name]))
            for array in source.copied.values():
                writer.write_tensor_data(array)
        except OSError as error:
            # NumPy does not say why it wrote less than it was asked to.
            raise OSError(error.errno or errno.ENOSPC, str(error)) from error
        finally:
            writer.close()
        sync(file)


def _resized(source: GgufSource, config: Any, architecture: str) -> dict[str, Field]:
    """The metadata of `source` with the sizes of `config`, under the keys of `architecture`."""
    before = renamed(source.header.fields, source.header.architecture, architecture)
    fields, number = dict(before), gguf.GGUFValueType.UINT32
    for suffix, name in SIZES.items():
        key = f"{architecture}.{suffix}"
        if key in fields:
            size = described_size(config, name, architecture)
            array = (gguf.GGUFValueType.ARRAY, number)
            fields[key] = (size, *(array if isinstance(size, list) else fields[key][1:]))
    heads = f"{architecture}.attention.head_count"
    if fields[heads] != before[heads]:
        width = (head_width(config), number, None)
        fields = {**{f"{architecture}.{suffix}": width for suffix in _HEAD}, **fields}
    return fields


def _cut_tokens(fields: Mapping[str, Field], stay: Sequence[int]) -> dict[str, Field]:
    """The metadata `fields` with the tokens at the numbers `stay` alone."""
    numbers = {old: new for new, old in enumerate(stay)}
    kept = {fields[TOKENS][0][old] for old in stay}
    cut = {}
    for key, (value, *types) in fields.items():
        if key in _PER_TOKEN:
            value = [value[old] for old in stay]
        elif key == _MERGES:
            pairs = [(merge, merge.split(" ")) for merge in value]
            value = [merge for merge, pair in pairs if {*pair, "".join(pair)} <= kept]
        elif key.endswith("_token_id"):
            if value not in numbers:
                # Runtimes do without a token that is not named.
                continue
            value = numbers[value]
        cut[key] = (value, *types)
    return cut


def _kind(shape: Sequence[int], kind: GgufType) -> gguf.GGMLQuantizationType:
    """The type of a tensor of `shape`."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    return types.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[types[kind]][0] else types[kind]
