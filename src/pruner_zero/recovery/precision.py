"""Weights that learn in float32, multiplied in what the processor is fast at."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.settings import RecoverSettings


@contextmanager
def float32_weights(model: nn.Module) -> Iterator[None]:
    """All parameters in float32 inside; afterwards each in its own dtype again, rounded."""
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    # Buffers stay as they are: rotary frequencies, for one, are float32 whatever the weights.
    for parameter, dtype in dtypes:
        if dtype.is_floating_point:
            parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)


def compute_dtype(settings: RecoverSettings, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in: bfloat16 where that is asked for, or native and auto."""
    if settings.compute_dtype == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if settings.compute_dtype == "bfloat16" else torch.float32
