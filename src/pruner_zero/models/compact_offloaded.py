"""Removing units from a model on disk: its blocks are cut file by file."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.compact import kept_units, take_units
from pruner_zero.models.offloaded import OffloadedModel, placeholder
from pruner_zero.models.units import Coupling, counts_left
from pruner_zero.tensor_file import TensorFile, write_tensors


def shrink_offloaded(
    offloaded: OffloadedModel,
    files: Sequence[Path],
    couplings: Sequence[Coupling],
    structure: Structure,
    kept: int,
) -> tuple[OffloadedModel, list[Path]]:
    """`shrink` for a model on disk: returns the smaller model, and the files of its blocks.

    files: of each block, as `save_offloaded` takes them; each is read, cut, and written beside
    itself. `offloaded` stays as it is. Raises PrunerZeroError where a block is saved under other
    names than its matrices have.
    """
    # A copy of a placeholder would have all of its elements in memory.
    copies = {
        id(parameter): nn.Parameter(placeholder(parameter), parameter.requires_grad)
        for parameter in offloaded.model.parameters()
    }
    smaller = replace(offloaded, model=deepcopy(offloaded.model, copies), loaded=set())
    cut = []
    for coupling in couplings:
        path = files[coupling.block]
        cut.append(path.with_name(f"smaller-{path.name}"))
        write_tensors(cut[-1], _cut_file(TensorFile(path), coupling, kept), {"format": "pt"})
        for name in (*coupling.producers, coupling.consumer):
            _cut_placeholders(smaller.model.get_submodule(name), coupling, name, kept)
    for field, count in counts_left(smaller.model.config, structure, kept).items():
        setattr(smaller.model.config, field, count)
    return smaller, cut


def _cut_file(file: TensorFile, coupling: Coupling, kept: int) -> dict[str, Tensor]:
    """The tensors of a block without the removed units."""
    tensors = {name: file.read(name) for name in file}
    weight = tensors.get(f"{coupling.consumer}.weight")
    if weight is None:
        raise PrunerZeroError(
            f"{coupling.consumer} is saved under another name, so that its units cannot be removed "
            "on disk: leave out --offload"
        )
    places = kept_units(weight, coupling, kept)
    for name in coupling.producers:
        for field in ("weight", "bias"):
            if (full := f"{name}.{field}") in tensors:
                tensors[full] = take_units(tensors[full], places, coupling.count, 0)
    tensors[f"{coupling.consumer}.weight"] = take_units(weight, places, coupling.count, 1)
    return tensors


def _cut_placeholders(linear: nn.Module, coupling: Coupling, name: str, kept: int) -> None:
    axis = int(name == coupling.consumer)
    for field, parameter in list(linear.named_parameters()):
        if parameter.ndim > axis:
            shape = list(parameter.shape)
            shape[axis] = shape[axis] // coupling.count * kept
            data = placeholder(parameter, shape)
            setattr(linear, field, nn.Parameter(data, parameter.requires_grad))
