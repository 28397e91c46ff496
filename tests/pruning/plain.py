"""Pruning as one would write it in an afternoon: hooks on the whole model, sorts, loops.

It knows the three architectures by name and shares no code with the subpackages it checks.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

Score = Callable[[Tensor, Tensor, Tensor], Tensor]

# W, X and G of one matrix to its scores.
SCORES: Mapping[str, Score] = {
    "magnitude": lambda W, X, G: W,
    "wanda": lambda W, X, G: W * X,
    "pruner-zero": lambda W, X, G: W.square() * ((G - G.min()) / (G.max() - G.min())),
}


@dataclass(frozen=True)
class Place:
    """A matrix: its name, and how to see it, (out, in), in the parameter that stores it."""

    name: str
    block: int
    parameter: Tensor
    see: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> Tensor:
        return self.see(self.parameter.data)


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder blocks and the prefix of their names."""
    if hasattr(model, "transformer"):
        return "transformer.h", model.transformer.h
    return "model.layers", model.model.layers


def places(model: nn.Module) -> list[Place]:
    """All matrices to prune, in the order of the model."""
    prefix, blocks = blocks_of(model)
    matrices = []
    for index, block in enumerate(blocks):
        for inner, module in block.named_modules():
            name = f"{prefix}.{index}.{inner}"
            if isinstance(module, nn.Linear):
                matrices.append(Place(name, index, module.weight, lambda stored: stored))
            elif isinstance(module, Conv1D):
                matrices.append(Place(name, index, module.weight, lambda stored: stored.T))
            elif inner.endswith("experts"):
                for stack_name in ("gate_up_proj", "down_proj"):
                    stack = module.get_parameter(stack_name)
                    for expert in range(len(stack)):
                        see = partial(torch.select, dim=0, index=expert)
                        matrices.append(Place(f"{name}.{stack_name}[{expert}]", index, stack, see))
    return matrices


@torch.no_grad()
def inputs(model: nn.Module, windows: Tensor, index: int) -> dict[str, Tensor]:
    """The inputs (tokens, in) of each matrix of block `index`, from a run of the whole model."""
    prefix, blocks = blocks_of(model)
    entering: dict[str, list[Tensor]] = defaultdict(list)
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def linear(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entering[name].append(arguments[0].reshape(-1, arguments[0].shape[-1]))

        def experts(module: Any, arguments: tuple[Tensor, ...]) -> None:
            hidden, chosen = arguments[0], arguments[1]
            for expert in range(len(module.gate_up_proj)):
                tokens = hidden[(chosen == expert).any(-1)]
                gate, up = (tokens @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                entering[f"{name}.gate_up_proj[{expert}]"].append(tokens)
                entering[f"{name}.down_proj[{expert}]"].append(functional.silu(gate) * up)

        if isinstance(module, (nn.Linear, Conv1D)):
            handles.append(module.register_forward_pre_hook(linear))
        elif name.endswith("experts"):
            handles.append(module.register_forward_pre_hook(experts))

    for inner, module in blocks[index].named_modules():
        watch(f"{prefix}.{index}.{inner}", module)
    for window in windows:
        model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in entering.items()}


def in_order(
    model: nn.Module, tokens: Tensor, dense_inputs: bool
) -> Iterator[tuple[Place, Tensor]]:
    """Each matrix with its inputs (tokens, in), block after block.

    dense_inputs: whether these are of the unchanged model, not those after the caller has changed
    the blocks before.
    """
    depth = len(blocks_of(model)[1])
    dense = [inputs(model, tokens, index) for index in range(depth)]
    for index in range(depth):
        entering = dense[index] if dense_inputs else inputs(model, tokens, index)
        for place in places(model):
            if place.block == index:
                yield place, entering[place.name]


def gradients(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """G of every matrix: the root of the summed squares of 100 times each window's gradient."""
    every = places(model)
    total = {place.name: torch.zeros_like(place.weight) for place in every}
    for window in windows:
        model.zero_grad()
        logits = model(window[None], use_cache=False).logits[0]
        functional.cross_entropy(logits[:-1], window[1:]).backward()
        for place in every:
            assert place.parameter.grad is not None
            total[place.name] += (100 * place.see(place.parameter.grad)).square()
    model.zero_grad()
    return {name: squares.sqrt() for name, squares in total.items()}


def row_zeros(scores: Tensor, sparsity: float) -> Tensor:
    """True at the lowest scores of each row, which a stable sort puts first."""
    count = int(scores.shape[1] * sparsity)
    order = scores.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def group_zeros(scores: Tensor, n: int, m: int) -> Tensor:
    """True at the n lowest of each m consecutive."""
    order = scores.reshape(-1, m).argsort(dim=1, stable=True)[:, :n]
    zeros = torch.zeros(scores.numel() // m, m, dtype=torch.bool).scatter_(1, order, True)
    return zeros.reshape(scores.shape)


@torch.no_grad()
def prune_plainly(
    model: nn.Module,
    windows: Tensor,
    score: Score,
    choose: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Prune in place; return the zeros of each matrix, True = pruned."""
    every = places(model)
    with torch.enable_grad():
        G = gradients(model, windows)
    _, blocks = blocks_of(model)
    dense = [inputs(model, windows, index) for index in range(len(blocks))]
    masks = {}
    for index in range(len(blocks)):
        tokens = dense[index]
        for place in every:
            if place.block == index:
                W = place.weight.abs()
                X = tokens[place.name].norm(dim=0, keepdim=True) / len(windows) ** 0.5
                masks[place.name] = choose(score(W, X, G[place.name]))
                place.weight[masks[place.name]] = 0
    return masks
