"""Units that can be removed from every block alike, and the matrices that share each of them.

They are found by the model's own tensor-parallel plan, which names the linear maps that can be
divided along their outputs (colwise) and those that take up what these put out (rowwise).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.structure import find_blocks

# The fields of the configuration that count units; the first counts those that are chosen.
COUNTS: dict[Structure, tuple[str, ...]] = {"channels": ("intermediate_size",)}


@dataclass(frozen=True)
class Coupling:
    """Linear maps of one block whose units can only be removed together.

    consumer: the name of the matrix that loses columns; producers: the names of those that lose
    rows. Unit i is the i-th of `count` equal slices, of a producer's rows (and its bias, if any) or
    of the consumer's columns.
    """

    block: int
    producers: tuple[str, ...]
    consumer: str
    count: int


def find_couplings(model: PreTrainedModel, structure: Structure) -> list[Coupling]:
    """The coupling of every block, in order.

    Without its column of the consumer a unit changes no output, so that to remove it and to set
    that column to zero are the same. Raises PrunerZeroError naming the family of the model where a
    block has no such coupling, or more than one.
    """
    family = model.config.model_type
    names = {module: name for name, module in model.named_modules()}
    plan = getattr(model.base_model.config, "base_model_tp_plan", None) or {}
    styles = {key.split(".*.", 1)[1]: style for key, style in plan.items() if ".*." in key}
    couplings = []
    for index, block in enumerate(find_blocks(model)):
        inside = list(_couplings(block, names[block], index, styles, structure))
        if len(inside) != 1 or any(parameter.ndim > 2 for parameter in block.parameters()):
            raise PrunerZeroError(
                f"--structure {structure} cannot remove any of the {family} family: a block must "
                "have one MLP, whose linear maps the model's tensor-parallel plan names, not fused "
                "and without experts; leave out --structure"
            )
        couplings += inside
    field = COUNTS[structure][0]
    counts = {getattr(model.config, field, None), *(coupling.count for coupling in couplings)}
    if len(counts) > 1:
        raise PrunerZeroError(
            f"--structure {structure} needs blocks that are as wide as {field} in the "
            f"configuration says, which those of the {family} family are not: leave it out"
        )
    return couplings


def _couplings(
    block: nn.Module, name: str, index: int, styles: dict[str, str], structure: Structure
) -> Iterator[Coupling]:
    """The couplings of one block: linear maps of one module, whose only parameters are theirs."""
    siblings: dict[str, dict[str, nn.Linear]] = defaultdict(dict)
    linears = {
        local: module for local, module in block.named_modules() if type(module) is nn.Linear
    }
    for local, linear in linears.items():
        siblings[local.rpartition(".")[0]][local] = linear
    for parent, parts in siblings.items():
        # Attention modules know the number of their block, where the cache keeps their keys.
        if hasattr(block.get_submodule(parent), "layer_idx"):
            continue
        consumers = [local for local in parts if styles.get(local) == "rowwise"]
        producers = [local for local in parts if styles.get(local) == "colwise"]
        parameters = set(block.get_submodule(parent).parameters())
        theirs = {p for local in (*consumers, *producers) for p in parts[local].parameters()}
        if len(consumers) != 1 or not producers or parameters != theirs:
            continue
        count = parts[consumers[0]].in_features
        if all(parts[local].out_features == count for local in producers):
            full = tuple(f"{name}.{local}" for local in producers)
            yield Coupling(index, full, f"{name}.{consumers[0]}", count)
