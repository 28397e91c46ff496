"""The tensors of a saved model, read one by one from its shards under the model's own names."""

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from pruner_zero.errors import PrunerZeroError
from pruner_zero.tensor_file import TensorFile

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@dataclass
class _Source:
    """The stored tensors that make up one or several of the model's, `name` the first of them.

    converter: what merges or splits them, None where one is the other. stored: their names
    with the pattern of the converter that each was found by.
    """

    name: str
    converter: Any = None
    stored: list[tuple[str, str]] = field(default_factory=list)


class Shards:
    """The weights of the model saved in `folder`.

    model: the same model without its weights, as transformers makes it on the meta device,
    which knows how stored names and layouts become its own (experts stored one by one
    become one parameter, for example). Raises PrunerZeroError for a damaged file.
    """

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self.folder = folder
        self._model = model
        files = [TensorFile(path) for path in weight_files(folder)]
        self._files = {name: file for file in files for name in file}
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._source: dict[str, _Source] = {}
        for source in self._group():
            self._source.update(dict.fromkeys(self._convert(source, real=False), source))

    def __contains__(self, name: str) -> bool:
        return name in self._source

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors `names` of the model with their names, in its dtype, one after the other.

        What is stored as one tensor comes together, in no promised order.
        """
        wanted = set(names)
        sources = {id(self._source[name]): self._source[name] for name in sorted(wanted)}
        for source in sources.values():
            for name, tensor in self._convert(source, real=True).items():
                if name in wanted:
                    yield name, tensor

    def _group(self) -> list[_Source]:
        """What all of the model's tensors are made of."""
        conversions = getattr(self._model, "_weight_conversions", None) or []
        renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        converters = [one for one in conversions if isinstance(one, WeightConverter)]
        by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
        state, prefix = self._model.state_dict(), self._model.base_model_prefix
        found: dict[str, _Source] = {}
        for stored in sorted(self._files, key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, state)
            if name not in state and stored in state:
                name, pattern = rename_source_key(stored, [], [], prefix, state)
            if name in state:
                converter = None if pattern is None else by_pattern[pattern]
                source = found.setdefault(name, _Source(name, converter))
                source.stored.append((stored, pattern or stored))
        return list(found.values())

    def _convert(self, source: _Source, *, real: bool) -> dict[str, Tensor]:
        """The model's tensors that come from `source`; on the meta device unless `real`."""
        name, dtype = source.name, self._dtypes[source.name]
        if source.converter is None:
            return {name: self._stored(source.stored[0][0], dtype, real)}
        converter = deepcopy(source.converter)
        for stored, pattern in source.stored:
            converter.add_tensor(name, stored, pattern, partial(self._stored, stored, dtype, real))
        made = converter.convert(name, model=self._model, config=self._model.config)
        return {key: one[0] if isinstance(one, list) else one for key, one in made.items()}

    def _stored(self, stored: str, dtype: torch.dtype, real: bool) -> Tensor:
        file = self._files[stored]
        if real:
            return file.read(stored).to(dtype)
        return torch.empty(file.shape(stored), dtype=dtype, device="meta")


def weight_files(folder: Path, weights: str = WEIGHTS, index: str = INDEX) -> list[Path]:
    """The files that transformers would load from `folder`, saved as `weights` or by `index`.

    Raises PrunerZeroError where there are none, or its index points outside the folder.
    """
    if (folder / weights).is_file():
        return [folder / weights]
    try:
        names = set(json.loads((folder / index).read_text())["weight_map"].values())
        paths = [Path(name) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PrunerZeroError(
            f"{folder} has neither {weights} nor a readable {index}: save the model again"
        ) from error
    suffix = Path(weights).suffix
    for path in paths:
        # Elsewhere may be someone else's file, and of another suffix a pickled one.
        if path.is_absolute() or ".." in path.parts or path.suffix != suffix:
            raise PrunerZeroError(
                f"{folder / index} names {str(path)[:200]!r}, which is no {suffix} file inside "
                "the folder: save the model again"
            )
    return [folder / path for path in paths]
