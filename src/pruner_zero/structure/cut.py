"""From a model with masked units to the smaller model that computes the same outputs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import set_tensor, size_of
from pruner_zero.structure.couplings import REFUSALS, Coupling, set_counts
from pruner_zero.tensor_file import TensorFile, write_tensors


def size_left(
    model: PreTrainedModel, names: Iterable[str], count: int, kept: int
) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` of `count` slices of the tensors are cut out.

    names: of the tensors, of which only parameters are counted.
    """
    numbers, nbytes = size_of(model)
    parameters = dict(model.named_parameters())
    for parameter in (parameters[name] for name in names if name in parameters):
        cut = parameter.numel() // count * (count - kept)
        numbers, nbytes = numbers - cut, nbytes - cut * parameter.itemsize
    return numbers, nbytes


def size_without_units(
    model: PreTrainedModel, couplings: Sequence[Coupling], kept: int
) -> tuple[int, int]:
    """The result of `size_of` after all but `kept` units of each coupling are cut out."""
    names = (name for coupling in couplings for name, _, _ in coupling.tensors(model))
    return size_left(model, names, couplings[0].count, kept)


@torch.no_grad()
def shrink(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Cut, in place, all but `kept` units of each coupling out, and update the configuration.

    The units that are cut are those whose columns of the consumer are zero throughout, so that no
    output changes. Raises ValueError where fewer than that are zero.
    """
    for coupling in couplings:
        weight = model.get_parameter(f"{coupling.consumer}.weight")
        places = kept_units(weight, coupling, kept)
        for name, parameter, axis in coupling.tensors(model):
            left = take_units(parameter.data, places, coupling.count, axis)
            _set(model, name, nn.Parameter(left, parameter.requires_grad))
    set_counts(model.config, structure, kept)


@contextmanager
def shrunk(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> Iterator[None]:
    """Within the context, `model` is the smaller model, as after `shrink`.

    The tensors from before are held too.
    """
    config = dict(vars(model.config))
    before = [
        (name, parameter)
        for coupling in couplings
        for name, parameter, _ in coupling.tensors(model)
    ]
    try:
        shrink(model, couplings, structure, kept)
        yield
    finally:
        for name, parameter in before:
            _set(model, name, parameter)
        vars(model.config).clear()
        vars(model.config).update(config)


def _set(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    """Set a parameter of a linear map, and the sizes of the map."""
    set_tensor(model, name, parameter)
    if parameter.ndim == 2:
        linear = model.get_submodule(name.rpartition(".")[0])
        linear.out_features, linear.in_features = parameter.shape


def kept_units(weight: Tensor, coupling: Coupling, kept: int) -> Tensor:
    """The units that stay, sorted: all non-zero units, filled up with the first zero units.

    weight: the consumer's, (out, in). Raises ValueError where more than `kept` are not zero.
    """
    alive = weight.unflatten(1, (coupling.count, -1)).ne(0).any(2).any(0)
    if int(alive.sum()) > kept:
        raise ValueError(f"{coupling.consumer} has {int(alive.sum())} units, not {kept}")
    places: Tensor = alive.int().argsort(descending=True, stable=True)[:kept].sort()[0]
    return places


def take_units(tensor: Tensor, places: Tensor, count: int, axis: int) -> Tensor:
    """The slices at `places` of the `count` equal ones of `tensor` along `axis`."""
    slices = tensor.unflatten(axis, (count, -1))
    kept: Tensor = slices.index_select(axis, places).flatten(axis, axis + 1).contiguous()
    return kept


def without_weights(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the class of `model` with the shapes that `config` describes, on "meta".

    Raises what transformers raises for a configuration that it refuses.
    """
    with torch.device("meta"):
        return type(model)(type(config).from_dict(config.to_dict()))


def check_shrunk(
    model: PreTrainedModel, couplings: Sequence[Coupling], structure: Structure, kept: int
) -> None:
    """Raise PrunerZeroError where the configuration cannot describe what `shrink` leaves.

    The model that it describes is built without its weights, and their shapes are compared.
    """
    expected = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    for coupling in couplings:
        for name, parameter, axis in coupling.tensors(model):
            expected[name][axis] = parameter.shape[axis] // coupling.count * kept
    config = deepcopy(model.config)
    set_counts(config, structure, kept)
    try:
        described = without_weights(model, config).named_parameters()
        fits = {name: list(tensor.shape) for name, tensor in described} == expected
    except REFUSALS:
        fits = False
    if not fits:
        raise PrunerZeroError(
            f"--structure {structure} cannot remove any of the {model.config.model_type} family, "
            "whose configuration cannot describe the smaller model: leave out --structure"
        )


def shrink_files(
    model: PreTrainedModel,
    files: Sequence[Path],
    couplings: Sequence[Coupling],
    structure: Structure,
    kept: int,
) -> tuple[PreTrainedConfig, list[Path]]:
    """`shrink` for a model on disk: the smaller model's configuration, and the files of its blocks.

    files: of each block, as they are saved; each is read, cut, and written beside
    itself. `model` stays as it is. Raises PrunerZeroError where a block is saved under other
    names than its matrices have.
    """
    smaller = []
    for coupling in couplings:
        path = files[coupling.block]
        smaller.append(path.with_name(f"smaller-{path.name}"))
        tensors = _cut(TensorFile(path), model, coupling, kept)
        write_tensors(smaller[-1], tensors, {"format": "pt"})
    config = deepcopy(model.config)
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
