"""How much memory all scores together take, from their computation until nobody holds them."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class Live:
    """The bytes of all scores that are anywhere in memory, and how often scores were computed."""

    def __init__(self) -> None:
        self.bytes = self.most = self.computed = self.largest = self.total = 0

    def __call__(self, values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        # Whoever holds a view of the tensor holds the array.
        array = values.numpy().copy()
        self.computed += 1
        self.bytes += array.nbytes
        self.total += array.nbytes
        self.most = max(self.most, self.bytes)
        self.largest = max(self.largest, array.nbytes)
        weakref.finalize(array, self._freed, array.nbytes)
        return torch.from_numpy(array)

    def _freed(self, size: int) -> None:
        self.bytes -= size

    def around(self, function: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
        return lambda *arguments: self(function(*arguments))
