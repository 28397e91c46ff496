"""Channels and heads of every block: which linear maps can only lose them together.

They are found by the model's own tensor-parallel plan, which names the linear maps that can be
divided along their outputs (colwise) and the linear maps that take these outputs as inputs
(rowwise).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_sizes import COUNTS, block_sizes
from pruner_zero.models.matrices import find_blocks

_NEEDED: Mapping[str, str] = {
    "channels": "one MLP, without experts,",
    "heads": "one attention layer",
}


@dataclass(frozen=True)
class Coupling:
    """Linear maps of one block whose units can only be removed together.

    consumer: the name of the matrix that loses columns; producers: the names of the matrices that
    lose rows. Unit i is the i-th of `count` equal slices, of a producer's rows (and its bias, if
    any) or of the consumer's columns: an MLP's channel, or a key-value head with the query heads
    that share it. structure: the kind of its units.
    """

    block: int
    producers: tuple[str, ...]
    consumer: str
    count: int
    structure: Structure = "channels"

    def tensors(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
        """The parameters with a slice for each unit: full name, parameter, axis of the slices."""
        for axis, names in enumerate((self.producers, (self.consumer,))):
            for name in names:
                linear = model.get_submodule(name)
                for full, parameter in linear.named_parameters(prefix=name):
                    # Columns have no part in the bias.
                    if parameter.ndim > axis:
                        yield full, parameter, axis


def find_couplings(model: PreTrainedModel, structure: Structure) -> list[Coupling]:
    """The coupling of every block, in order.

    A unit whose columns of the consumer are zero changes no output, so that removing a unit and
    setting these columns to zero are equivalent. Raises PrunerZeroError naming the family of the
    model where a block has no such coupling, or more than one.
    """
    config = model.config
    family, field = config.model_type, COUNTS[structure][0]
    names = {module: name for name, module in model.named_modules()}
    plan = getattr(model.base_model.config, "base_model_tp_plan", None) or {}
    styles = {key.split(".*.", 1)[1]: style for key, style in plan.items() if ".*." in key}
    couplings = []
    sizes = [of_block.get(field, 0) for of_block in block_sizes(config)]
    for index, block in enumerate(find_blocks(model)):
        experts = any(parameter.ndim > 2 for parameter in block.parameters())
        siblings = [] if structure == "channels" and experts else _siblings(block, styles)
        inside = []
        for module, producers, consumer in siblings:
            # Attention modules know the number of their block, where the cache keeps their keys.
            if hasattr(module, "layer_idx") != (structure == "heads"):
                continue
            count = sizes[index] if structure == "heads" else consumer.in_features
            if _divides(module, list(producers.values()), consumer, count):
                full = [f"{names[block]}.{local}" for local in producers]
                inside.append(Coupling(index, tuple(full), names[consumer], count, structure))
        if len(inside) != 1:
            raise PrunerZeroError(
                f"--structure {structure} cannot remove any of the {family} family: each block "
                f"needs {_NEEDED[structure]} of separate linear layers that the model's "
                "base_model_tp_plan lists; leave out --structure"
            )
        couplings += inside
    if [coupling.count for coupling in couplings] != sizes:
        raise PrunerZeroError(
            f"--structure {structure} needs blocks that are as wide as {field} in the "
            f"configuration says, which those of the {family} family are not: leave it out"
        )
    return couplings


def head_slices(model: PreTrainedModel) -> dict[str, int]:
    """Into how many slices of its inputs each matrix falls that takes up heads, by its name.

    Empty for a model whose heads cannot be removed.
    """
    try:
        return {coupling.consumer: coupling.count for coupling in find_couplings(model, "heads")}
    except PrunerZeroError:
        return {}


def _siblings(
    block: nn.Module, styles: dict[str, str]
) -> Iterator[tuple[nn.Module, dict[str, nn.Linear], nn.Linear]]:
    """Modules of a block in which a rowwise linear map takes the outputs of colwise ones."""
    parts: dict[str, dict[str, nn.Linear]] = defaultdict(dict)
    for local, module in block.named_modules():
        if type(module) is nn.Linear:
            parts[local.rpartition(".")[0]][local] = module
    for parent, linears in parts.items():
        consumers = [linear for local, linear in linears.items() if styles.get(local) == "rowwise"]
        producers = {
            local: linear for local, linear in linears.items() if styles.get(local) == "colwise"
        }
        if len(consumers) == 1 and producers:
            yield block.get_submodule(parent), producers, consumers[0]


def _divides(
    module: nn.Module, producers: list[nn.Linear], consumer: nn.Linear, count: int
) -> bool:
    """Whether each parameter of `module` belongs to a unit, or is shared by all `count` units."""
    widths = {consumer.in_features, *(linear.out_features for linear in producers)}
    if not count or any(width % count for width in widths):
        return False
    attends = hasattr(module, "layer_idx")
    # Queries as wide as the consumer's inputs, keys and values: three maps, so no fused ones.
    if attends and (len(producers) != 3 or producers[0].out_features != consumer.in_features):
        return False
    if not attends and len(widths) > 1:
        return False
    theirs = {p for linear in (*producers, consumer) for p in linear.parameters()}
    head = min(widths) // count
    # A norm of each head has one weight for each of its outputs, the same for all heads.
    return all(p.shape == (head,) and attends for p in set(module.parameters()) - theirs)
