"""The shards of a saved model: tensors read one by one, and files of blocks that become shards."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.models.reading import INDEX, weight_files
from pruner_zero.models.transformers_private import StoredGroup, convert_group, group_stored
from pruner_zero.tensor_file import TensorFile, write_tensors


class Shards:
    """The weights of the model saved in `folder`.

    model: the same model without its weights, loaded by transformers to the meta device; it defines
    how stored names and layouts map to the model's (experts stored one by one become one parameter,
    for example). Raises PrunerZeroError for a damaged file.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self.folder = folder
        self._model = model
        files = [TensorFile(path) for path in weight_files(folder)]
        self._files = {name: file for file in files for name in file}
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._group: dict[str, StoredGroup] = {}
        for group in group_stored(model, self._files):
            self._group.update(dict.fromkeys(self._convert(group, read=False), group))

    def __contains__(self, name: str) -> bool:
        return name in self._group

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors `names` of the model with their names, in its dtype, one after the other.

        Tensors that are stored as one come together; the order is not that of `names`.
        """
        wanted = set(names)
        groups = {id(self._group[name]): self._group[name] for name in sorted(wanted)}
        for group in groups.values():
            for name, tensor in self._convert(group, read=True).items():
                if name in wanted:
                    yield name, tensor

    def _convert(self, group: StoredGroup, *, read: bool) -> dict[str, Tensor]:
        """The model's tensors that come from `group`, on the meta device unless they are read."""
        dtype = self._dtypes[group.name]

        def stored(key: str) -> Tensor:
            file = self._files[key]
            if read:
                return file.read(key).to(dtype)
            return torch.empty(file.shape(key), dtype=dtype, device="meta")

        return convert_group(self._model, group, stored)


def link_shards(blocks: Sequence[Path], folder: Path, rest: Mapping[str, Tensor]) -> None:
    """Write shards and their index to `folder`: the files `blocks`, and one of the `rest`.

    Each of the `blocks` becomes a shard by a hard link, or a copy where the file system has none.
    """
    total = len(blocks) + 1
    names = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    for path, name in zip(blocks, names, strict=False):
        _link(path, folder / name)
    write_tensors(folder / names[-1], rest, {"format": "pt"})
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


def _link(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
