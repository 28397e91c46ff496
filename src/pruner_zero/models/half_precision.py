"""Products of half-precision tensors on processors that only emulate them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pruner_zero.devices import emulated_dtypes

# With fewer rows, as where a model writes one token, casting the weights gains nothing
# (benchmarks/decisions.md).
_LEAST_ROWS = 4

# Of products with the stacked matrices of experts; older versions of torch have none.
_GROUPED = getattr(functional, "grouped_mm", None)

# Whether the thread is within the context: so is the mode, which a thread does not pass on.
_thread = local()


@contextmanager
def half_products() -> Iterator[None]:
    """Within the context, products whose dtype the CPU emulates are taken in float32.

    Sums are taken in float32 and rounded once to the dtype of the factors, as by processors that
    have such products. On these nothing changes, nor on other devices, nor in other dtypes.
    Emulated products take ten to hundreds of times as long (pytorch/pytorch#146508). A context
    within another one changes nothing: what observes products between the two sees their factors.
    Products of float32 tensors that autocast takes in half precision are left to torch.
    """
    dtypes = () if getattr(_thread, "active", False) else emulated_dtypes()
    if not dtypes:
        yield
        return
    _thread.active = True
    try:
        with _InFloat32(dtypes):
            yield
    finally:
        _thread.active = False


class _InFloat32(TorchFunctionMode):
    """Takes products of CPU tensors of the `dtypes` in float32."""

    _products = (
        *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
        *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, Tensor.addmm, Tensor.baddbmm),
        functional.scaled_dot_product_attention,
    )

    def __init__(self, dtypes: Collection[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        first = next(iter((*args, *given.values())), None)
        if isinstance(first, Tensor) and first.dtype in self.dtypes and first.is_cpu:
            if func is functional.linear:
                return _linear(*args, **given)
            if func is _GROUPED:
                return _grouped(*args, **given)
            if func in self._products and "out" not in given:
                wide = {name: _widened(value) for name, value in given.items()}
                return func(*map(_widened, args), **wide).to(first.dtype)
        return func(*args, **given)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `functional.linear`, which passes its arguments by these names."""
    if input.dtype != weight.dtype or input.numel() < _LEAST_ROWS * input.shape[-1]:
        return functional.linear(input, weight, bias)
    product: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return product


def _grouped(mat_a: Tensor, mat_b: Tensor, **given: Any) -> Tensor:
    """As `functional.grouped_mm`, whose names these are; the gradient takes the product again.

    So no float32 copy of all experts is kept for it.
    """

    def product(*factors: Tensor) -> Any:
        assert _GROUPED is not None
        wide = {name: _widened(value) for name, value in given.items()}
        return _GROUPED(*map(_widened, factors), **wide).to(mat_a.dtype)

    # Without gradients this is one call of `product`.
    result: Tensor = checkpoint(
        product, mat_a, mat_b, use_reentrant=False, preserve_rng_state=False
    )
    return result


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Linear(torch.autograd.Function):
    """`functional.linear` in float32, which keeps no float32 copy for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (..., in), weight: (out, in), bias: (out) or None; (..., out) in the dtype of x."""
        of_x, of_weight, _ = ctx.needs_input_grad
        # Inputs are kept for the gradient of the weight alone.
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.bias = None if bias is None else bias.dtype
        wide = None if bias is None else bias.float()
        return functional.linear(x.float(), weight.float(), wide).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients, each rounded once to the dtype of what it belongs to."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        wide = upstream.float()
        rows = wide.reshape(-1, wide.shape[-1])
        return (
            (wide @ weight.float()).to(upstream.dtype) if of_x else None,
            (rows.T @ x.reshape(-1, x.shape[-1]).float()).to(upstream.dtype) if of_weight else None,
            rows.sum(0).to(ctx.bias) if of_bias else None,
        )
