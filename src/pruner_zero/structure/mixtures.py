"""The experts of a mixture: the tensors with a slice for each of them.

They are found by building, without weights, the model of a configuration with one expert less:
tensors that become smaller belong to the experts.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature

from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import find_blocks
from pruner_zero.structure.removal import REFUSALS, without_weights

# The fields of configurations that hold the number of experts of a block.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Mixture:
    """The experts of one block.

    consumer: the name of the stack of matrices that gives the outputs; the module that holds it is
    called with hidden states (tokens, width), the numbers of the experts chosen for each token and
    their router weights, both (tokens, chosen). tensors: the names of the parameters and buffers
    with a slice for each expert, and the axis of the slices.
    """

    block: int
    consumer: str
    tensors: Mapping[str, int]

    @property
    def experts(self) -> str:
        """The name of the module that holds the matrices of the experts."""
        return self.consumer.rpartition(".")[0]


@dataclass(frozen=True)
class Mixtures:
    """The mixtures of a model, of `count` experts each, of which `chosen` compute for a token.

    field: the field of the configuration that holds the count; attributes: the modules and their
    attributes that hold it.
    """

    count: int
    chosen: int
    field: str
    attributes: tuple[tuple[str, str], ...]
    blocks: tuple[Mixture, ...]


def find_mixtures(model: PreTrainedModel) -> Mixtures:
    """The mixtures of `model`.

    Raises PrunerZeroError naming the family where there are none, and where a smaller number in the
    configuration does not describe the same model without some of its experts.
    """
    config = model.config
    counts = {field: getattr(config, field, None) for field in _COUNTS}
    field = next((field for field, count in counts.items() if isinstance(count, int)), "")
    chosen = getattr(config, "num_experts_per_tok", None)
    if not field or not isinstance(chosen, int):
        raise _refused(model, "its configuration does not say how many experts there are")
    if (getattr(config, "n_group", None) or 1) > 1:
        raise _refused(model, "its router chooses among groups of experts, all of one size")
    count = getattr(config, field)
    if count <= chosen:
        raise PrunerZeroError(
            f"none of the {count} experts of a block can go, since the router chooses {chosen} for "
            "each token: leave out --structure"
        )
    smaller_config = deepcopy(config)
    setattr(smaller_config, field, count - 1)
    try:
        smaller_model = without_weights(model, smaller_config)
    except REFUSALS:
        why = f"its configuration does not take {count - 1} of them"
        raise _refused(model, why) from None
    tensors = tensors_of(model)
    axes = _axes(model, smaller_model, count)
    names = {module: name for name, module in model.named_modules()}
    blocks = []
    for index, block in enumerate(find_blocks(model)):
        inside = {
            name: axes.pop(name) for name in list(axes) if name.startswith(f"{names[block]}.")
        }
        if not inside:
            continue
        stacks = [name for name in inside if tensors[name].ndim == 3]
        owners = {name.rpartition(".")[0] for name in stacks}
        if len(owners) != 1 or len(signature(model.get_submodule(*owners).forward).parameters) != 3:
            raise _refused(model, "its experts are not called with what the router chose")
        if not all(tensor.is_floating_point() for tensor in block.state_dict().values()):
            raise _refused(model, "its router keeps the numbers of experts in a table")
        blocks.append(Mixture(index, stacks[-1], inside))
    if axes or not blocks:
        raise _refused(model, "its experts are not in the decoder blocks")
    smaller = dict(smaller_model.named_modules())
    attributes = [
        (name, key)
        for module, name in names.items()
        for key, value in vars(module).items()
        if isinstance(value, int) and value == count and vars(smaller[name]).get(key) == count - 1
    ]
    return Mixtures(count, chosen, field, tuple(attributes), tuple(blocks))


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters and buffers of `model` by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _axes(model: PreTrainedModel, smaller_model: PreTrainedModel, count: int) -> dict[str, int]:
    """The tensors that are smaller in the model with an expert less, and along which axis."""
    tensors, smaller = tensors_of(model), tensors_of(smaller_model)
    if tensors.keys() != smaller.keys():
        raise _refused(model, "the experts of a block are not in one tensor")
    axes = {}
    for name, tensor in tensors.items():
        before, after = tuple(tensor.shape), tuple(smaller[name].shape)
        if before == after:
            continue
        axis = next(axis for axis, size in enumerate(before) if size != after[axis])
        if before[axis] != count or after != (*before[:axis], count - 1, *before[axis + 1 :]):
            raise _refused(model, f"the shape of {name} depends on the number of experts")
        axes[name] = axis
    return axes


def _refused(model: PreTrainedModel, why: str) -> PrunerZeroError:
    return PrunerZeroError(
        f"--structure experts cannot remove any of the {model.config.model_type} family: {why}; "
        "leave out --structure"
    )
