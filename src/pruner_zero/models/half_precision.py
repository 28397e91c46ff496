"""Models in half precision on processors that only emulate its products: computed in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn

from pruner_zero.devices import emulated_dtypes


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Within the context, tensors of `module` whose products the CPU emulates are float32.

    Emulated products take ten to hundreds of times as long (pytorch/pytorch#146508). Afterwards
    `module` has the tensors that it had before: what was written to them in between is lost. The
    float32 copies take 4 bytes a number. Contexts nest, and other devices and dtypes stay as they
    are.
    """
    emulated = emulated_dtypes()
    stored = [
        (tensor, tensor.data)
        for tensor in chain(module.parameters(), module.buffers())
        # Placeholders of a model on disk repeat one number.
        if tensor.is_cpu and tensor.dtype in emulated and 0 not in tensor.stride()
    ]
    for tensor, data in stored:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
