"""Saving a model on disk: the files of its pruned blocks become the shards of the result."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.files import writing
from pruner_zero.models.read import INDEX, quiet
from pruner_zero.models.save import copy_license
from pruner_zero.tensor_file import TensorFile, write_tensors

if TYPE_CHECKING:
    from pruner_zero.offload.model import OffloadedModel


def save_offloaded(
    offloaded: "OffloadedModel",
    blocks: Sequence[Path],
    folder: Path,
    config: PreTrainedConfig | None = None,
) -> None:
    """Write what `save_model` writes, with the weights of the blocks from the files `blocks`.

    Each file holds what `OffloadedModel.changed` gave for a block. It becomes a shard of the
    result by a hard link, or a copy where the file system has none. config: in place of the
    model's, where the files hold other shapes. Raises what `save_model` raises.
    """
    total = len(blocks) + 1
    names = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        for path, name in zip(blocks, names, strict=False):
            _link(path, folder / name)
        with offloaded.outside():
            write_tensors(folder / names[-1], offloaded.rest(), {"format": "pt"})
        _write_index(folder, names)
        _write_config(offloaded.model, config or offloaded.model.config, folder)
        if offloaded.tokenizer is not None:
            offloaded.tokenizer.save_pretrained(folder)
        copy_license(offloaded.model, folder)


def _write_index(folder: Path, names: Sequence[str]) -> None:
    files = {name: TensorFile(folder / name) for name in names}
    shapes = [file.shape(tensor) for file in files.values() for tensor in file]
    index = {
        "metadata": {
            "total_parameters": sum(map(math.prod, shapes)),
            "total_size": sum(file.nbytes for file in files.values()),
        },
        "weight_map": {tensor: name for name, file in files.items() for tensor in file},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(model: PreTrainedModel, config: PreTrainedConfig, folder: Path) -> None:
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
