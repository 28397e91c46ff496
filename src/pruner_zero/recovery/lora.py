"""LoRA under a pruning mask: merging an adapter leaves every pruned weight at zero.

The ordinary adapter adds B·A·x beside the layer; merged, B·A is dense and every zero is lost. Here
the mask is part of the adapter, W + mask ∘ (alpha/rank · B·A), in training as in the merged model.
The masked product is computed in full once for each step of the optimizer, and the gradients of A
and B follow from that of W. PEFT's layers take no mask and would compute the product for every
window, so PEFT is not used; initial values and scale are those of its `LoraConfig` (Hu et al. 2021,
2106.09685). Source of the masked adapter: MaskLoRA (Zimmer et al. 2023, PERP, 2312.15230).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruner_zero.models import Matrix
from pruner_zero.recovery.trainable import with_gradient


class MaskedAdapters:
    """One adapter for each of the `matrices` stored in one parameter.

    A is (rank, in), drawn uniformly from ±1/√in; B is (out, rank), zero at first. The zeros of the
    parameter are the mask. Its values are kept in the dtype that it has now, also where it is
    float32 in training.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        matrices: Sequence[Matrix],
        *,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        self.parameter = parameter
        self.matrices = matrices
        self.base = parameter.data.clone()
        self.scale = alpha / rank
        self.rate_scale = 1.0
        self.tensors: dict[str, Tensor] = {}
        for matrix in matrices:
            height, width = matrix.weight.shape
            A = torch.rand(rank, width, generator=generator) * 2 - 1
            A = (A / math.sqrt(width)).to(parameter.device)
            B = torch.zeros(height, rank, device=parameter.device)
            self.tensors[f"{matrix.name}.lora_A"] = with_gradient(A)
            self.tensors[f"{matrix.name}.lora_B"] = with_gradient(B)

    def write(self) -> None:
        """Set each matrix to its pruned weights plus the masked product of its adapter."""
        for matrix in self.matrices:
            A, B = self._adapter(matrix)
            base = matrix.view(self.base)
            matrix.weight.copy_((B @ A).mul_(self.scale).mul_(base != 0).add_(base))

    def pull(self, gradient: Tensor) -> None:
        """The chain rule through the masked product."""
        for matrix in self.matrices:
            A, B = self._adapter(matrix)
            G = (matrix.view(gradient) * (matrix.view(self.base) != 0)).mul_(self.scale)
            assert A.grad is not None
            assert B.grad is not None
            A.grad += B.T @ G
            B.grad += G @ A.T

    def _adapter(self, matrix: Matrix) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{matrix.name}.lora_A"], self.tensors[f"{matrix.name}.lora_B"]
