"""Trained tensors: fp32 values from which a parameter of the model is made, zeros excluded."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, Matrix, find_matrices, parameters_of, size_of

# A dense model has a few zeros by rounding; below this share a model counts as not pruned.
LEAST_SPARSITY = 0.01

# The least root mean square that a learning rate is a share of.
_LEAST_SCALE = 1e-3


class Trainable(Protocol):
    """One parameter of the model, made from fp32 `tensors` that the optimizer changes.

    The zeros that the parameter has at the beginning are its mask. Each tensor has a gradient from
    the start, zero until `pull` adds to it. rate_scale: what the learning rate is multiplied by.
    """

    parameter: nn.Parameter
    tensors: dict[str, Tensor]
    rate_scale: float

    def write(self) -> None:
        """Compute the parameter, fp32, from the tensors."""

    def pull(self, gradient: Tensor) -> None:
        """Add the tensors' gradients, by the chain rule from the parameter's `gradient`."""


class KeptWeights:
    """The kept weights of one parameter, gathered into one vector.

    experts: of a parameter that stacks experts, the numbers of the trained ones; None for all.
    Pruned weights are not in the vector, so no gradient, momentum or weight decay reaches them,
    and the optimizer's state is smaller by the sparsity. The learning rate is a share of the root
    mean square of what is trained, zeros included: Adam's steps have the same size for every
    weight, and the weights of models differ in size by a factor of ten.
    Source: Adafactor's relative step size (Shazeer & Stern 2018, 1804.04235), with their least
    scale of 0.001.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, experts: Sequence[int] | None = None
    ) -> None:
        self.parameter = parameter
        stored, size = parameter.data, parameter.numel()
        # Indexing by positions is ten times as fast as by a mask; int32 halves their memory.
        if experts is None:
            positions = stored.flatten().nonzero().flatten()
        else:
            each = size // len(stored)
            places = [stored[i].flatten().nonzero().flatten() + i * each for i in experts]
            positions, size = torch.cat(places), each * len(experts)
        self.positions = positions.int() if parameter.numel() < 2**31 else positions
        self.kept = with_gradient(self._gather(parameter.data).float())
        self.tensors = {name: self.kept}
        root_mean_square = math.sqrt(float(self.kept.square().sum()) / size)
        self.rate_scale = max(_LEAST_SCALE, root_mean_square)

    def write(self) -> None:
        """Write the kept weights to their positions."""
        self.parameter.data.view(-1).index_copy_(0, self.positions.long(), self.kept)

    def pull(self, gradient: Tensor) -> None:
        """Add the gradient at the kept positions."""
        assert self.kept.grad is not None
        self.kept.grad += self._gather(gradient)

    def _gather(self, stored: Tensor) -> Tensor:
        return stored.flatten().index_select(0, self.positions)


@contextmanager
def float32_weights(model: nn.Module) -> Iterator[None]:
    """Parameters are float32 inside; afterwards each is rounded to its own dtype again."""
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    # Buffers are left alone; rotary frequencies, for example, are always float32.
    for parameter, dtype in dtypes:
        if dtype.is_floating_point:
            parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)


def with_gradient(tensor: Tensor) -> Tensor:
    """`tensor` with a gradient of zeros for the optimizer; autograd does not track it."""
    tensor.grad = torch.zeros_like(tensor)
    return tensor


def check_trainable(matrices: Sequence[Matrix], name: str) -> None:
    """Raise PrunerZeroError where the model `name` stores weights in a quantized form."""
    for parameter_name, parameter in parameters_of(matrices).items():
        if not parameter.is_floating_point():
            raise PrunerZeroError(
                f"{parameter_name} of {name} is quantized and cannot be trained: "
                "give the pruned model with its weights in floating point"
            )


def check_pruned(pruned: LanguageModel, dense: LanguageModel | None) -> None:
    """Raise PrunerZeroError for hardly any zeros and no fewer parameters than `dense` has."""
    zeros = sparsity(find_matrices(pruned.model))
    if zeros >= LEAST_SPARSITY:
        return
    # Bytes depend on the dtype too.
    if dense is None or size_of(pruned.model)[0] >= size_of(dense.model)[0]:
        raise PrunerZeroError(
            f"{pruned.name} is not pruned, {zeros:.2%} of its prunable weights are zero: give the "
            "folder that prune wrote; if prune removed whole units, give the dense model as "
            "--teacher"
        )


def sparsity(matrices: Sequence[Matrix]) -> float:
    """The share of zeros among the weights of all `matrices`."""
    parameters = parameters_of(matrices).values()
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters)
    return zeros / sum(parameter.numel() for parameter in parameters)
