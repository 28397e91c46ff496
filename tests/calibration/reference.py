"""Statistics computed the slow, plain way: every input recorded, every expert by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.models.next_token import in_float32


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

    def tokens(self, name: str, width: int) -> int:
        """How many rows are not zero throughout."""
        return sum(1 for row in self._stacked(name, width).tolist() if any(row))

    def _stacked(self, name: str, width: int) -> Tensor:
        return torch.cat([torch.zeros(1, width, dtype=torch.double), *self.rows.get(name, [])])


@torch.no_grad()
def plain_inputs(model: PreTrainedModel, windows: Tensor) -> Inputs:
    """Run the whole model window by window and record the inputs of every matrix."""
    inputs = Inputs()
    handles = []
    for matrix in find_matrices(model):
        if matrix.expert is None:
            module = model.get_submodule(matrix.name)
            handles.append(module.register_forward_pre_hook(_writes(inputs, matrix.name)))
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            handles.append(module.register_forward_pre_hook(_experts(inputs, name)))
    with in_float32(model):
        for window in windows:
            model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def _writes(inputs: Inputs, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _module, arguments: inputs.add(name, arguments[0])


def _experts(inputs: Inputs, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Computes the inputs of each expert from the arguments of the mixture."""

    def hook(module: Any, arguments: tuple[Any, ...]) -> None:
        if type(module).__name__ == "Llama4TextExperts":
            # All tokens once for each expert; tokens that the expert does not serve are zero.
            shares = list(arguments[0].chunk(module.num_experts))
        else:
            hidden, chosen, _ = arguments
            shares = [
                torch.stack(
                    [row for row, experts in zip(hidden, chosen, strict=True) if expert in experts]
                )
                if (chosen == expert).any()
                else hidden[:0]
                for expert in range(module.num_experts)
            ]
        for expert, share in enumerate(shares):
            inputs.add(f"{name}.gate_up_proj[{expert}]", share)
            inputs.add(f"{name}.down_proj[{expert}]", _between(module, expert, share))

    return hook


def _between(module: Any, expert: int, share: Tensor) -> Tensor:
    """The inputs of the second matrix of an expert, by the formula of each model."""
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
        for name, gradient in scaled_gradients(model, window).items():
            sums[name] += gradient.square()
    return {name: total.sqrt() for name, total in sums.items()}


def scaled_gradients(model: PreTrainedModel, window: Tensor) -> dict[str, Tensor]:
    """`100·g` of the parameters that have a gradient for one window, fp64."""
    model.zero_grad()
    chances = model(window[None], use_cache=False).logits[0].log_softmax(-1)
    (-chances[torch.arange(len(window) - 1), window[1:]].mean()).backward()
    gradients = {
        name: 100 * parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return gradients


@dataclass
class Products:
    """`x · dL/dx` (windows, tokens, width) of the inputs x of each matrix, by its name.

    By the number of a block, those of what it adds to its input, summed over the width. L is the
    sum of the losses of a window with labels that the model draws. Each is the gradient of a factor
    of 1 by which x is multiplied.
    """

    inputs: dict[str, Tensor]
    blocks: dict[int, Tensor]


def plain_products(model: PreTrainedModel, windows: Tensor, seed: int = 0) -> Products:
    """The products of all matrices and blocks, window by window, expert by expert."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(*windows.shape, dtype=torch.double, generator=generator)
    factors: dict[str | int, Tensor] = {}
    rows: dict[str | int, list[Tensor]] = {}
    handles, replaced = [], []

    def scaled(key: str | int, values: Tensor, width: int) -> Tensor:
        factors[key] = torch.ones(values.shape[-2], width, requires_grad=True)
        return values * factors[key].to(values.dtype)

    def entered(name: str, _part: nn.Module, args: Any) -> Any:
        return (scaled(name, args[0], args[0].shape[-1]), *args[1:])

    def added(index: int, _block: Any, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = args[0] + scaled(index, hidden - args[0], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def experts(module: Any, name: str, hidden: Tensor, *router: Tensor) -> Tensor:
        outputs = []
        shares = hidden.view(module.num_experts, -1, hidden.shape[1]) if not router else None
        for expert in range(module.num_experts):
            share = hidden if shares is None else shares[expert]
            share = scaled(f"{name}.gate_up_proj[{expert}]", share, share.shape[1])
            between = _between(module, expert, share)
            between = scaled(f"{name}.down_proj[{expert}]", between, between.shape[1])
            down = module.down_proj[expert]
            in_out = type(module).__name__ in ("GptOssExperts", "Llama4TextExperts")
            output = between @ (down if in_out else down.T)
            if hasattr(module, "down_proj_bias"):
                output = output + module.down_proj_bias[expert]
            if router:
                output = output * (router[1] * (router[0] == expert)).sum(1, keepdim=True)
            outputs.append(output)
        return torch.stack(outputs).sum(0) if router else torch.cat(outputs)

    for matrix in find_matrices(model):
        if matrix.expert is None:
            part = model.get_submodule(matrix.name)
            handles.append(part.register_forward_pre_hook(partial(entered, matrix.name)))
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            vars(module)["forward"] = partial(experts, module, name)
            replaced.append(module)
    for index, block in enumerate(find_blocks(model)):
        handles.append(block.register_forward_hook(partial(added, index)))
    with in_float32(model):
        for window, place in zip(windows, places, strict=True):
            chances = model(window[None], use_cache=False).logits[0].float().log_softmax(-1)
            sums = chances.detach().double().exp().cumsum(-1)
            labels = [int((row < u * row[-1]).sum()) for row, u in zip(sums, place, strict=True)]
            (-chances[torch.arange(len(window)), labels].sum()).backward()
            for key, factor in factors.items():
                grad = torch.zeros_like(factor) if factor.grad is None else factor.grad
                rows.setdefault(key, []).append(grad.double())
    for handle in handles:
        handle.remove()
    for module in replaced:
        del vars(module)["forward"]
    model.zero_grad()
    stacked = {key: torch.stack(value) for key, value in rows.items()}
    return Products(
        {key: value for key, value in stacked.items() if isinstance(key, str)},
        {key: value for key, value in stacked.items() if isinstance(key, int)},
    )


def plain_output_gradients(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    """`sqrt(n · mean over tokens of (100·dL/dy)²)` (out, 1) of every matrix, fp64.

    The gradient of a weight matrix is `Σ_t d_t x_tᵀ` over its tokens t: it is solved for d_t, the
    gradient at the output. That is possible where the inputs x_t that are not zero are linearly
    independent: a window has no token twice, and fewer tokens than any matrix has inputs.
    """
    matrices = find_matrices(model)
    squares = {m.name: torch.zeros(m.weight.shape[0], dtype=torch.double) for m in matrices}
    tokens = dict.fromkeys(squares, 0)
    for window in windows:
        inputs, gradients = plain_inputs(model, window[None]), scaled_gradients(model, window)
        for matrix in matrices:
            rows = torch.cat(inputs.rows.get(matrix.name, [torch.zeros(0, matrix.weight.shape[1])]))
            rows = rows[rows.any(1)].double()
            if len(rows):
                solved = matrix.view(gradients[matrix.parameter_name]) @ torch.linalg.pinv(rows)
                squares[matrix.name] += solved.square().sum(1)
                tokens[matrix.name] += len(rows)
    return {
        name: (len(windows) * total / max(tokens[name], 1)).sqrt()[:, None]
        for name, total in squares.items()
    }
