"""Statistics computed the slow, plain way: every input written down, every expert by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

from pruner_zero.models import find_matrices


@dataclass
class Inputs:
    """The rows that entered each matrix in one pass over all windows, by matrix name."""

    rows: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, inputs: Tensor) -> None:
        self.rows.setdefault(name, []).append(inputs.detach().flatten(0, -2).double().clone())

    def X(self, name: str, width: int, windows: int) -> Tensor:  # noqa: N802
        """(1, width)"""
        rows = self._stacked(name, width)
        return (rows.square().sum(0, keepdim=True) / windows).sqrt().float()

    def gram(self, name: str, width: int, windows: int) -> Tensor:
        """(width, width)"""
        rows = self._stacked(name, width)
        return (2 * rows.T @ rows / windows).float()

    def _stacked(self, name: str, width: int) -> Tensor:
        return torch.cat([torch.zeros(1, width, dtype=torch.double), *self.rows.get(name, [])])


@torch.no_grad()
def plain_inputs(model: PreTrainedModel, windows: Tensor) -> Inputs:
    """Run the whole model window by window, writing down what enters every matrix."""
    inputs = Inputs()
    handles = []
    for matrix in find_matrices(model):
        if matrix.expert is None:
            module = model.get_submodule(matrix.name)
            handles.append(module.register_forward_pre_hook(_writes(inputs, matrix.name)))
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            handles.append(module.register_forward_pre_hook(_experts(inputs, name)))
    for window in windows:
        model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def _writes(inputs: Inputs, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _module, arguments: inputs.add(name, arguments[0])


def _experts(inputs: Inputs, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Works out what each expert is fed from what the mixture is called with."""

    def hook(module: Any, arguments: tuple[Any, ...]) -> None:
        if type(module).__name__ == "Llama4TextExperts":
            # All tokens once for each expert, those that it does not serve being zero.
            shares = list(arguments[0].chunk(module.num_experts))
        else:
            hidden, chosen, _ = arguments
            shares = [
                torch.stack([row for row, own in zip(hidden, chosen, strict=True) if expert in own])
                if (chosen == expert).any()
                else hidden[:0]
                for expert in range(module.num_experts)
            ]
        for expert, share in enumerate(shares):
            inputs.add(f"{name}.gate_up_proj[{expert}]", share)
            inputs.add(f"{name}.down_proj[{expert}]", _between(module, expert, share))

    return hook


def _between(module: Any, expert: int, share: Tensor) -> Tensor:
    """What enters the second matrix of an expert, by each model's own formula."""
    up = module.gate_up_proj[expert]
    kind = type(module).__name__
    if kind == "GptOssExperts":
        both = share @ up + module.gate_up_proj_bias[expert]
        gate, linear = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
        gated: Tensor = gate * torch.sigmoid(1.702 * gate) * (linear + 1)
        return gated
    both = share @ up if kind == "Llama4TextExperts" else share @ up.T
    gate, linear = both.chunk(2, dim=-1)
    product: Tensor = silu(gate) * linear
    return product


def plain_gradients(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    """`sqrt(Σ_n (100·g_n)²)` of every parameter, fp64, laid out as it is stored."""
    sums = {
        name: torch.zeros_like(parameter, dtype=torch.double)
        for name, parameter in model.named_parameters()
    }
    for window in windows:
        model.zero_grad()
        chances = model(window[None], use_cache=False).logits[0].log_softmax(-1)
        (-chances[torch.arange(len(window) - 1), window[1:]].mean()).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += (100 * parameter.grad.double()).square()
    model.zero_grad()
    return {name: total.sqrt() for name, total in sums.items()}
