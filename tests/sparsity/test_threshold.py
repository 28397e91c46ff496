"""One threshold for matrices that come one after the other is one stable sort of all of them."""

import pytest
import torch
from torch import Tensor

from pruner_zero.sparsity.pattern import Lazy
from pruner_zero.sparsity.threshold import global_threshold


def test_each_mask_needs_no_other() -> None:
    # A resumed run asks for the last ones only.
    named = {f"m{index}": torch.ones(2, 3) for index in range(3)}
    threshold = global_threshold(named, 0.5)
    pruned = [int((~threshold.mask(named[name], name)).sum()) for name in ("m2", "m1", "m0")]
    assert pruned == [0, 3, 6]


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_computed_twice(ties: bool) -> None:
    scores = torch.arange(10.0)[None]
    if ties:
        scores[0, 4:6] = 4.0
    computed = []

    def compute(name: str) -> Tensor:
        computed.append(name)
        return scores

    stream = Lazy(["m"], compute)
    assert int(global_threshold(stream, 0.5).mask(scores, "m").sum()) == 5
    assert len(computed) == 2
