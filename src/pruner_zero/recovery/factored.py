"""An optimizer without a tensor of the size of the weights, for training in little memory."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruner_zero.recovery.kept_weights import LEAST_SCALE
from pruner_zero.tensor_file import TensorFile

# The largest root mean square of an update of a matrix.
_CLIP = 1.0
# The average of squared gradients forgets as 1 − steps^−_DECAY.
_DECAY = 0.8
_TINY = 1e-30


class FactoredWeights:
    """Trains the kept weights of one float32 `parameter` in place, by each gradient as it comes.

    The zeros that the parameter has are its mask. experts: of a parameter that stacks experts, the
    numbers of the trained ones; None for all. The mean squares of the gradients are those of rows
    times those of columns. scale: what the learning rate is multiplied by, the root mean square of
    each matrix, single zeros included.
    Source: Adafactor without a first moment (Shazeer & Stern 2018, 1804.04235), under a mask.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, experts: Sequence[int] | None = None
    ) -> None:
        self.name, self.parameter, self.steps = name, parameter, 0
        weight = parameter.data
        # The area of the rows and columns that have kept weights, as if the others were cut out.
        kept = weight != 0
        area = kept.any(-1).sum(-1) * kept.any(-2).sum(-1)
        self.count = kept.sum((-2, -1))[..., None, None].clamp_min(1)
        self.density = self.count / area[..., None, None].clamp_min(1)
        squares = weight.square().sum((-2, -1), keepdim=True)
        self.scale = (squares / area[..., None, None].clamp_min(1)).sqrt().clamp_min(LEAST_SCALE)
        self.frozen = sorted(set(range(len(weight))) - set(experts)) if experts else []
        self.rows = torch.zeros(weight.shape[:-1], device=weight.device)
        self.columns = torch.zeros((*weight.shape[:-2], weight.shape[-1]), device=weight.device)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the kept weights against `gradient`, which is overwritten, by a share of their size.

        rate: that share; without it a step's root mean square is 1 over the kept weights.
        """
        weight = self.parameter.data
        gradient = gradient.to(torch.float32).mul_(weight != 0)
        if self.frozen:
            gradient[self.frozen] = 0
        self.steps += 1
        share, squares = self.steps**-_DECAY, gradient.square()
        self.rows.lerp_(squares.mean(-1), share)
        self.columns.lerp_(squares.mean(-2), share)
        del squares
        mean = self.rows.mean(-1, keepdim=True).clamp_min(_TINY)
        gradient *= (self.rows / mean).clamp_min(_TINY).rsqrt()[..., None]
        gradient *= self.columns.clamp_min(_TINY).rsqrt()[..., None, :]
        # The means are over pruned weights too, which makes the steps of kept ones larger.
        gradient *= self.density.sqrt()
        size = (gradient.square().sum((-2, -1), keepdim=True) / self.count).sqrt()
        weight.sub_(gradient.mul_(self.scale * rate / (size / _CLIP).clamp_min(1)))

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on, by name."""
        tensors = {"value": self.parameter.data, "rows": self.rows, "columns": self.columns}
        return {f"{self.name}.{key}": tensor for key, tensor in tensors.items()}

    def restore(self, saved: TensorFile, steps: int) -> None:
        """Take back what `state` gave after that many steps."""
        for name, tensor in self.state().items():
            tensor.copy_(saved.read(name))
        self.steps = steps
