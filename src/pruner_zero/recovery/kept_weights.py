"""The weights that pruning kept, gathered in float32 for the optimizer; zeros are never in it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruner_zero.models.load import cast_weights

# The least root mean square that a learning rate is a share of.
LEAST_SCALE = 1e-3


class KeptWeights:
    """The kept weights of one parameter in one float32 vector, `values`, with a gradient of zeros.

    The zeros that the parameter has at the beginning are its mask. experts: of a parameter that
    stacks experts, the numbers of the trained ones; None for all. Pruned weights are not in the
    vector, so no gradient, momentum or weight decay reaches them, and the optimizer's state is
    smaller by the sparsity.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, experts: Sequence[int] | None = None
    ) -> None:
        self.name, self.parameter = name, parameter
        stored = parameter.data
        # Indexing by positions is ten times as fast as by a mask; int32 halves their memory.
        if experts is None:
            positions = stored.flatten().nonzero().flatten()
        else:
            each = parameter.numel() // len(stored)
            kept = [stored[i].flatten().nonzero().flatten() + i * each for i in experts]
            positions = torch.cat(kept)
        self.positions = positions.int() if parameter.numel() < 2**31 else positions
        self.values = self._gather(stored).float()
        # For the optimizer; autograd does not track the vector.
        self.values.grad = torch.zeros_like(self.values)
        self.rate_scale = rate_scale(stored, experts)

    def write(self) -> None:
        """Write the values to their positions in the parameter, which is float32."""
        self.parameter.data.view(-1).index_copy_(0, self.positions.long(), self.values)

    def clear(self) -> None:
        """Set the gradient of the values to zero."""
        assert self.values.grad is not None
        self.values.grad.zero_()

    def pull(self, gradient: Tensor) -> None:
        """Add the parameter's `gradient` at the kept positions to that of the values."""
        assert self.values.grad is not None
        self.values.grad += self._gather(gradient)

    def _gather(self, stored: Tensor) -> Tensor:
        return stored.flatten().index_select(0, self.positions)


def rate_scale(weights: Tensor, experts: Sequence[int] | None = None) -> float:
    """What a learning rate is multiplied by: the root mean square of what is trained, zeros too.

    experts: the numbers of the trained ones where `weights` stacks experts. Adam's steps have the
    same size for every weight, and the weights of models differ in size by a factor of ten.
    Source: Adafactor's relative step size (Shazeer & Stern 2018, 1804.04235), with their least
    scale of 0.001.
    """
    trained = weights if experts is None else weights[list(experts)]
    return max(LEAST_SCALE, math.sqrt(float(trained.float().square().mean())))


@contextmanager
def float32_weights(model: nn.Module) -> Iterator[None]:
    """Parameters are float32 inside; afterwards each is rounded to its own dtype again."""
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    cast_weights(model, torch.float32)
    try:
        yield
    finally:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)
