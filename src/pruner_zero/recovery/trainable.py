"""What learns: fp32 tensors from which a parameter of the model is made, its zeros left alone."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix

# Fewer zeros than this are no pruning: rounding alone leaves some in a dense model.
LEAST_SPARSITY = 0.01


class Trainable(Protocol):
    """One parameter of the model, made from `tensors`, fp32, which the optimizer moves.

    Each of them has a gradient from the beginning, zero until `pull` adds to it.
    """

    parameter: nn.Parameter
    tensors: dict[str, Tensor]

    def write(self) -> None:
        """Make the parameter, fp32, from the tensors."""

    def pull(self, gradient: Tensor) -> None:
        """Add to the tensors' gradients what `gradient`, that of the parameter, means for them."""


class KeptWeights:
    """The weights of one parameter that its mask keeps, side by side in one vector.

    A pruned weight is no part of it, so that no gradient, momentum or decay can reach it, and
    the optimizer's state is smaller by the sparsity.
    """

    def __init__(self, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        self.parameter = parameter
        # Going by places is ten times as fast as going by a mask; half as many bytes hold them
        # as 32-bit integers.
        places = mask.flatten().nonzero().flatten()
        self.places = places.int() if mask.numel() < 2**31 else places
        self.kept = with_gradient(self._gather(parameter.data))
        self.tensors = {name: self.kept}

    def write(self) -> None:
        """Put the kept weights back into their places."""
        self.parameter.data.view(-1).index_copy_(0, self.places.long(), self.kept)

    def pull(self, gradient: Tensor) -> None:
        """The gradient at the kept places."""
        assert self.kept.grad is not None
        self.kept.grad += self._gather(gradient)

    def _gather(self, stored: Tensor) -> Tensor:
        return stored.flatten().index_select(0, self.places)


def with_gradient(tensor: Tensor) -> Tensor:
    """`tensor` with a gradient of zeros, for the optimizer; autograd itself never sees it."""
    tensor.grad = torch.zeros_like(tensor)
    return tensor


def read_masks(matrices: Sequence[Matrix], name: str) -> dict[str, Tensor]:
    """The masks of all parameters that hold `matrices`, bool, True = kept, in their layout.

    Raises PrunerZeroError where the model `name` has next to no zeros, or stores weights that
    cannot learn.
    """
    parameters = parameters_of(matrices)
    for parameter_name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise PrunerZeroError(
                f"{parameter_name} of {name} is quantized and cannot learn: "
                "give the pruned model with its weights in floating point"
            )
    masks = {own: parameter.data != 0 for own, parameter in parameters.items()}
    zeros = sparsity(matrices)
    if zeros < LEAST_SPARSITY:
        raise PrunerZeroError(
            f"{name} is not pruned, {zeros:.2%} of its prunable weights are zero: "
            "give the folder that prune wrote"
        )
    return masks


def parameters_of(matrices: Sequence[Matrix]) -> Mapping[str, nn.Parameter]:
    """The parameters that hold `matrices`, each once, by name."""
    return {matrix.parameter_name: matrix.parameter for matrix in matrices}


def sparsity(matrices: Sequence[Matrix]) -> float:
    """The share of weights that are zero over all `matrices`."""
    parameters = parameters_of(matrices).values()
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters)
    return zeros / sum(parameter.numel() for parameter in parameters)
