"""Pretended accelerators: tensors that say they are elsewhere, and really compute on the CPU.

Unlike torch's fake tensors they have values, so that code that branches on them can be run.
Operands on two devices and NumPy are refused, as a real accelerator refuses them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# A device type that torch knows, with indices, and that no build computes on by itself.
HERE, THERE = torch.device("lazy", 0), torch.device("lazy", 1)

_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(Tensor):
    """`held`, a tensor on the CPU, that says it is on `place`."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> "Elsewhere":
        tensor: Elsewhere = Tensor._make_subclass(
            cls, held.detach(), False, dispatch_device=True, device_for_backend_keys=HERE
        )
        tensor.held, tensor.place = held, place
        return tensor

    def __init__(self, held: Tensor, place: torch.device) -> None:
        super().__init__()

    @property
    def data(self) -> Any:
        """Another tensor of the same values; it may be replaced by one on another device."""
        return Elsewhere(self.held, self.place)

    @data.setter
    def data(self, value: Tensor) -> None:
        new = value if isinstance(value, Elsewhere) else Elsewhere(value, torch.device("cpu"))
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.held, self.place = new.held, new.place

    def tolist(self) -> Any:
        """The values, which torch would read without calling the subclass."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        return _compute(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    """Code inside that asks for a tensor on HERE or THERE gets one."""
    factories: Any = _Factories
    # Parameters that move become new ones: the old are of another type.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with factories():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        return _compute(func, args, kwargs or {})


@contextmanager
def waits() -> Iterator[list[str]]:
    """The operations inside that would make the program wait for a real accelerator.

    Their results are numbers, or tensors whose size depends on values, or they leave the device.
    """
    operations: list[str] = []
    recorder: Any = _Recorder
    with recorder(operations):
        yield operations


class _Recorder(TorchDispatchMode):
    def __init__(self, operations: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        packet = func.overloadpacket
        masks = packet in _INDEXING and any(leaf.dtype == torch.bool for leaf in tensors[1:])
        result = func(*args, **(kwargs or {}))
        moved = func in _MOVES and _place(tensors[-1]) != _place(result)
        there = any(isinstance(leaf, Elsewhere) for leaf in [*tensors, result])
        if there and (packet in _WAITING or masks or moved):
            self.operations.append(str(func))
        return result


_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)

_WAITING = (
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.bincount,
    torch.ops.aten.equal,
    torch.ops.aten.masked_select,
    torch.ops.aten.nonzero,
    torch.ops.aten.repeat_interleave,
    torch.ops.aten._unique2,
)


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func is torch.ops.prim.device.default:
        return tensors[0].place if isinstance(tensors[0], Elsewhere) else torch.device("cpu")
    places = {_place(tensor) for tensor in tensors if tensor.dim() or isinstance(tensor, Elsewhere)}
    if len(places) > 1 and func not in _MOVES:
        raise RuntimeError(f"{func} of tensors on {', '.join(sorted(map(str, places)))}")
    device = kwargs.get("device")
    place = torch.device(device) if device is not None else _place(tensors[0]) if tensors else None
    place = next(iter(places)) if device is None and len(places) == 1 else place
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrappers = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    result = func(*_inside(args), **_inside(kwargs))

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or place is None:
            return leaf
        # A parameter has the type of the tensor that it is made from, on any device.
        typed = func is torch.ops.aten.detach.default and isinstance(tensors[0], Elsewhere)
        if place.type != HERE.type and not typed:
            return leaf
        # A tensor that was changed in place keeps its wrapper.
        return wrappers[id(leaf)] if id(leaf) in wrappers else Elsewhere(leaf, place)

    return pytree.tree_map(wrapped, result)


def _place(tensor: Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, Elsewhere) else torch.device("cpu")


def _inside(values: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, values)
