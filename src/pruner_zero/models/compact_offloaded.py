"""Removing units from a model on disk: its blocks are cut file by file."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.compact import kept_units, take_units
from pruner_zero.models.offloaded import OffloadedModel
from pruner_zero.models.units import Coupling, set_counts
from pruner_zero.tensor_file import TensorFile, write_tensors


def shrink_offloaded(
    offloaded: OffloadedModel,
    files: Sequence[Path],
    couplings: Sequence[Coupling],
    structure: Structure,
    kept: int,
) -> tuple[PreTrainedConfig, list[Path]]:
    """`shrink` for a model on disk: the smaller model's configuration, and the files of its blocks.

    files: of each block, as `save_offloaded` takes them; each is read, cut, and written beside
    itself. `offloaded` stays as it is. Raises PrunerZeroError where a block is saved under other
    names than its matrices have.
    """
    smaller = []
    for coupling in couplings:
        path = files[coupling.block]
        smaller.append(path.with_name(f"smaller-{path.name}"))
        tensors = _cut(TensorFile(path), offloaded.model, coupling, kept)
        write_tensors(smaller[-1], tensors, {"format": "pt"})
    config = deepcopy(offloaded.model.config)
    set_counts(config, structure, kept)
    return config, smaller


def _cut(file: TensorFile, model: nn.Module, coupling: Coupling, kept: int) -> dict[str, Tensor]:
    """The tensors of a block without the removed units."""
    axes = {name: axis for name, _, axis in coupling.tensors(model)}
    tensors = {name: file.read(name) for name in file}
    if missing := sorted(axes.keys() - tensors.keys()):
        raise PrunerZeroError(
            f"{missing[0]} is saved under another name, so that units cannot be removed on disk: "
            "leave out --offload"
        )
    places = kept_units(tensors[f"{coupling.consumer}.weight"], coupling, kept)
    for name, axis in axes.items():
        tensors[name] = take_units(tensors[name], places, coupling.count, axis)
    return tensors
