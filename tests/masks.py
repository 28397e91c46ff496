"""The mask of one matrix by its scores."""

from torch import Tensor

from pruner_zero.sparsity.pattern import Pattern


def keep_mask(scores: Tensor, pattern: Pattern, name: str = "matrix") -> Tensor:
    """The mask of one matrix that competes with no other; arguments as in `Pattern.choose`."""
    return pattern.within_matrices().choose({name: scores})[name]
