"""The pretended devices: operations that would wait for a real one are recorded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.elsewhere import HERE, elsewhere, waits

WAITING: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda x: float(x.sum()),
    "a condition": lambda x: bool((x > 2).any()),
    "a list": lambda x: x.tolist(),
    "a copy": lambda x: x.cpu(),
    "places": lambda x: x.nonzero(),
    "a selection": lambda x: x[x > 2],
    "distinct values": lambda x: x.unique(),
    "counts": lambda x: x.long().bincount(),
}


@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING)
def test_operations_that_depend_on_values_are_recorded(
    operation: Callable[[Tensor], object],
) -> None:
    with elsewhere():
        there = torch.arange(6.0).to(HERE)
        with waits() as operations:
            operation(there)
    assert len(operations) == 1


def test_no_other_operation_is_recorded() -> None:
    here = torch.arange(6.0)
    with elsewhere():
        there = here.to(HERE)
        with waits() as operations:
            (there + there.sort().values).masked_fill_(there > 2, 0.0)[2:].cumsum(0)
            bool(here.any())
            here.nonzero()
    assert operations == []
