"""An optimizer without a tensor of the size of the weights, for training in little memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pruner_zero.tensor_file import TensorFile

# The least root mean square that a learning rate is a share of.
LEAST_SCALE = 1e-3
# The largest root mean square of an update.
_CLIP = 1.0
# The average of squared gradients forgets as 1 − steps^−_DECAY.
_DECAY = 0.8
_TINY = 1e-30
# The number of weights processed at a time: their temporary tensors fit in the cache of a core.
_CHUNK = 2**18


class FactoredMatrix:
    """Trains the kept weights of a float32 matrix `weight` in place, by each gradient as it comes.

    The zeros that it has are its mask. The mean squares of the gradients are those of rows times
    those of columns. scale: what the learning rate is multiplied by, the root mean square of the
    rows and columns that are not all zeros.
    Source: Adafactor without a first moment (Shazeer & Stern 2018, 1804.04235), under a mask.
    """

    def __init__(self, name: str, weight: Tensor) -> None:
        self.name, self.weight, self.steps = name, weight, 0
        kept = weight != 0
        # As if whole rows and columns of zeros were cut out.
        area = (kept.any(1).sum() * kept.any(0).sum()).clamp_min(1)
        self.count = kept.sum().clamp_min(1)
        self.density = self.count / area
        self.scale = (weight.square().sum() / area).sqrt().clamp_min(LEAST_SCALE)
        self.rows, self.columns = torch.zeros_like(weight[:, 0]), torch.zeros_like(weight[0])

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the kept weights against `gradient`, which is overwritten, by a share of their size.

        gradient: float32. rate: that share; without it a step's root mean square is 1 over the kept
        weights.
        """
        outputs, inputs = self.weight.shape
        of_rows, of_columns = torch.zeros_like(self.rows), torch.zeros_like(self.columns)
        for part, weight, values in self._parts(gradient):
            # A mask in float32, since one of booleans takes longer to make and to multiply by.
            squares = values.mul_(torch.ne(weight, 0, out=torch.empty_like(weight))).square()
            of_rows[part] = squares.sum(1)
            of_columns += squares.sum(0)
        self.steps += 1
        share = self.steps**-_DECAY
        self.rows.lerp_(of_rows.div_(inputs), share)
        self.columns.lerp_(of_columns.div_(outputs), share)
        # The means are over pruned weights too, which makes the steps of kept ones larger.
        rows = (self.rows / self.rows.mean().clamp_min(_TINY)).clamp_min_(_TINY)
        rows = rows.rsqrt_().mul_(self.density.sqrt())
        columns = self.columns.clamp_min(_TINY).rsqrt_()
        for part, _, values in self._parts(gradient):
            of_rows[part] = values.mul_(columns).square().sum(1)
        size = (of_rows.mul_(rows).mul_(rows).sum() / self.count).sqrt_()
        rows *= self.scale * rate / (size / _CLIP).clamp_min_(1)
        for part, weight, values in self._parts(gradient):
            weight.addcmul_(values, rows[part, None], value=-1)

    def _parts(self, gradient: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some rows at a time: which, their weights, and their gradient."""
        size = max(1, _CHUNK // gradient.shape[1])
        for first in range(0, len(gradient), size):
            part = slice(first, first + size)
            yield part, self.weight[part], gradient[part]

    def state(self) -> dict[str, Tensor]:
        """All that a later step depends on, by name."""
        tensors = {"value": self.weight, "rows": self.rows, "columns": self.columns}
        return {f"{self.name}.{key}": tensor for key, tensor in tensors.items()}

    def restore(self, saved: TensorFile, steps: int) -> None:
        """Take back what `state` gave after that many steps."""
        for name, tensor in self.state().items():
            tensor.copy_(saved.read(name))
        self.steps = steps
