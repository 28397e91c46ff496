"""Precision of training: weights in float32, matrix products in bfloat16 where it is native."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.settings import RecoverSettings


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


def compute_dtype(settings: RecoverSettings, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; auto is bfloat16 where `device` multiplies it natively."""
    if settings.compute_dtype == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if settings.compute_dtype == "bfloat16" else torch.float32
