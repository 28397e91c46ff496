"""Where the decoder blocks of a model are, and which weight matrices in them can be pruned.

They are found by structure, not by the model's name: the blocks are the module list that holds
most of the parameters, and a prunable matrix is any linear map inside a block.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pruner_zero.errors import PrunerZeroError

# Mixtures that store their experts as (expert, in, out) and have no attribute `is_transposed`.
_IN_OUT_STACKS = {"Llama4TextExperts"}
# In the place of the number of a block, for the tables of tokens.
OUTSIDE = -1
# A matrix of a wide model has this many inputs.
MANY_INPUTS = 4096


@dataclass(frozen=True, eq=False)
class Matrix:
    """One prunable weight matrix, viewed as (out, in) whatever its storage layout.

    block: the number of its decoder block, `OUTSIDE` for a table of tokens, which is not pruned.
    transposed: whether it is stored as (in, out). expert: its index in a parameter that stacks
    the experts of a mixture; None for an ordinary matrix.
    """

    name: str
    block: int
    parameter: nn.Parameter
    parameter_name: str
    transposed: bool = False
    expert: int | None = None

    @property
    def weight(self) -> Tensor:
        """The weights (out, in) in their own dtype: a view; writing to it changes the model."""
        return self.view(self.parameter.data)

    @property
    def local_name(self) -> str:
        """The name inside the block, the same for this matrix in every block."""
        return self.name.split(f".{self.block}.", 1)[-1]

    def view(self, stored: Tensor) -> Tensor:
        """This matrix (out, in) inside a tensor laid out like its parameter, e.g. a gradient."""
        matrix = stored if self.expert is None else stored[self.expert]
        return matrix.T if self.transposed else matrix


def find_tables(model: Any) -> list[Matrix]:
    """The embedding and the head, each with a row for every token; one where they are tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(part.weight): part.weight for part in parts if part is not None}
    return [Matrix(names[key], OUTSIDE, weight, names[key]) for key, weight in weights.items()]


def local_name_of(name: str, block: int) -> str:
    """The name of a matrix inside its `block`; `up[*]` for every expert `up[3]` of a mixture."""
    return re.sub(r"\[\d+\]$", "[*]", name.split(f".{block}.", 1)[-1])


def parameters_of(matrices: Sequence[Matrix]) -> dict[str, nn.Parameter]:
    """The parameters that hold `matrices`, by name; the experts of a mixture share one."""
    return {matrix.parameter_name: matrix.parameter for matrix in matrices}


def experts_of(matrices: Sequence[Matrix], parameter_name: str) -> list[int] | None:
    """The numbers of the experts among `matrices` that a parameter stacks, None for no stack."""
    experts = [m.expert for m in matrices if m.parameter_name == parameter_name]
    return [number for number in experts if number is not None] or None


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder blocks in order: the module list that holds most of the parameters.

    Raises PrunerZeroError where the model has none.
    """
    return list(block_list(model))


def block_list(model: nn.Module) -> nn.ModuleList:
    """The module list that `find_blocks` reads; it raises the same."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise PrunerZeroError(
            f"{type(model).__name__} has no list of decoder blocks: give a decoder-only model"
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def size_of(module: nn.Module) -> tuple[int, int]:
    """The number of a module's parameters and their bytes; tied parameters count once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set the parameter or buffer of `model` that has the full name `name`."""
    owner, _, local = name.rpartition(".")
    setattr(model.get_submodule(owner), local, tensor)


def find_matrices(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Matrix]:
    """Every linear map inside the decoder blocks, in the order of the model.

    `include` and `exclude` are shell patterns over the full names, such as `*.mlp.*`.
    Embeddings, the head, and the routers and gates of mixtures are never among them.
    Raises PrunerZeroError where nothing remains, or a pattern matches nothing.
    """
    names = {module: name for name, module in model.named_modules()}
    matrices = [
        matrix
        for index, block in enumerate(find_blocks(model))
        for routers in [_routers_of(block)]
        for module in block.modules()
        if module not in routers
        for matrix in _matrices_of(module, names[module], index)
    ]
    for pattern in (*include, *exclude):
        if not any(_matches(matrix, pattern) for matrix in matrices):
            example = f": the names look like {matrices[0].name}" if matrices else ""
            raise PrunerZeroError(
                f"the pattern '{pattern}' matches no matrix of this model{example}"
            )
    kept = [
        matrix
        for matrix in matrices
        if (not include or any(_matches(matrix, pattern) for pattern in include))
        and not any(_matches(matrix, pattern) for pattern in exclude)
    ]
    if not kept:
        raise PrunerZeroError("no matrix is left to prune: change --include or --exclude")
    return kept


def is_wide(matrices: Sequence[Matrix]) -> bool:
    """Whether the model of `matrices` counts as wide: other choices are best there."""
    return max((matrix.weight.shape[1] for matrix in matrices), default=0) >= MANY_INPUTS


def check_weights(matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError naming the first matrix that is quantized, or holds NaN or infinity."""
    for matrix in matrices:
        if not matrix.parameter.is_floating_point():
            raise PrunerZeroError(
                f"{matrix.name} is quantized: give the model with its weights in floating point"
            )
    weights = ((matrix.name, matrix.weight) for matrix in matrices)
    check_finite(weights, "repair the checkpoint or exclude the matrix")


def check_finite(
    named: Iterable[tuple[str, Tensor]], remedy: str = "repair the checkpoint"
) -> None:
    """Raise PrunerZeroError naming the first tensor that holds NaN or infinity, and the remedy."""
    for name, values in named:
        if count := int((~torch.isfinite(values)).sum()):
            raise PrunerZeroError(f"{name} has {count} weights that are NaN or infinite: {remedy}")


def _matches(matrix: Matrix, pattern: str) -> bool:
    # The name of an expert ends in brackets, which in a shell pattern mean a set of characters;
    # a name copied from a report must match the expert.
    return fnmatchcase(matrix.name, pattern) or fnmatchcase(
        matrix.name, pattern.replace("[", "[[]")
    )


def _routers_of(block: nn.Module) -> set[nn.Module]:
    """The linear maps of `block` that choose experts, or weigh a shared expert.

    A router is the only linear map of a part beside the experts, with an output for each of them;
    the gate of a shared expert has one output.
    """
    routers: set[nn.Module] = set()
    for mixture in block.modules():
        counts = {
            len(stack)
            for child in mixture.children()
            for stack in child.parameters(recurse=False)
            if stack.ndim == 3 and not isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        }
        for child in mixture.children() if counts else ():
            linears = [part for part in child.modules() if isinstance(part, nn.Linear)]
            if len(linears) == 1 and linears[0].out_features in {*counts, 1}:
                routers.add(linears[0])
    return routers


def _matrices_of(module: nn.Module, name: str, block: int) -> list[Matrix]:
    if isinstance(module, (nn.Linear, Conv1D)):
        transposed = isinstance(module, Conv1D)
        weight = module.get_parameter("weight")
        return [Matrix(name, block, weight, f"{name}.weight", transposed)]
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return []
    in_out = bool(getattr(module, "is_transposed", type(module).__name__ in _IN_OUT_STACKS))
    return [
        Matrix(f"{name}.{local}[{expert}]", block, stack, f"{name}.{local}", in_out, expert)
        for local, stack in module.named_parameters(recurse=False)
        if stack.ndim == 3
        for expert in range(stack.shape[0])
    ]
