"""Products that a CPU emulates are those of float32, rounded once, with the same gradients."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pruner_zero.devices import emulated_dtypes
from pruner_zero.models import half_products, next_token_loss
from tests.tiny_models import tiny_model

HALF = (torch.bfloat16, torch.float16)
EMULATED = "pruner_zero.models.half_precision.emulated_dtypes"


@pytest.fixture
def emulating() -> Iterator[None]:
    """A CPU that emulates both half-precision dtypes."""
    with patch(EMULATED, lambda: HALF), half_products():
        yield


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.sampled_from(HALF),
    st.lists(st.integers(1, 4), max_size=2),
    st.tuples(st.integers(4, 12), st.integers(1, 9), st.integers(1, 7)),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_linear_layer_is_that_of_float32_rounded_once(
    dtype: torch.dtype, outer: list[int], sizes: tuple[int, int, int], bias: bool, seed: int
) -> None:
    rows, width, out = sizes
    x, weight = drawn(seed, *outer, rows, width).to(dtype), drawn(seed + 1, out, width).to(dtype)
    added = drawn(seed + 2, out).to(dtype) if bias else None
    wide = [None if value is None else value.float() for value in (x, weight, added)]
    narrow = [value for value in (x, weight, added) if value is not None]
    plain = [value for value in wide if value is not None]
    for value in (*narrow, *plain):
        value.requires_grad_()
    with patch(EMULATED, lambda: HALF), half_products():
        result = functional.linear(*narrow)
    expected = functional.linear(*plain)
    assert result.dtype == dtype
    assert torch.equal(result, expected.to(dtype))
    upstream = drawn(seed + 3, *result.shape).to(dtype)
    result.backward(upstream)
    expected.backward(upstream.float())
    for value, reference in zip(narrow, plain, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        assert value.grad.dtype == dtype
        assert torch.equal(value.grad, reference.grad.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "product",
    [
        torch.matmul,
        torch.bmm,
        lambda a, b: a @ b,
        lambda a, b: a.matmul(b),
        lambda a, b: torch.baddbmm(torch.ones_like(a @ b), a, b),
        lambda a, b: torch.mm(a[0], b[0]),
        lambda a, b: torch.addmm(torch.ones_like(a[0] @ b[0]), a[0], b[0]),
        lambda a, b: functional.scaled_dot_product_attention(a, a, b.mT, is_causal=True),
        lambda a, b: functional.scaled_dot_product_attention(query=a, key=a, value=b.mT),
        lambda a, b: functional.linear(input=a, weight=b[0].T),
    ],
)
@pytest.mark.usefixtures("emulating")
def test_other_products_are_those_of_float32_rounded_once(
    product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    a, b = drawn(0, 2, 9, 5).to(dtype), drawn(1, 2, 5, 9).to(dtype)
    result = product(a, b)
    assert result.dtype == dtype
    assert torch.equal(result, product(a.float(), b.float()).to(dtype))


@pytest.mark.usefixtures("emulating")
def test_float32_and_inputs_of_few_rows_are_left_alone() -> None:
    weight = drawn(1, 6, 5)
    with patch("pruner_zero.models.half_precision._Linear.apply", side_effect=AssertionError):
        functional.linear(drawn(0, 9, 5), weight)
        functional.linear(drawn(0, 3, 5).bfloat16(), weight.bfloat16())


@pytest.mark.usefixtures("emulating")
def test_what_observes_products_sees_their_factors() -> None:
    seen: list[object] = []

    class Observer(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            seen.extend(args)
            return func(*args, **(kwargs or {}))

    a, b = drawn(0, 9, 5).bfloat16(), drawn(1, 5, 9).bfloat16()
    with Observer(), half_products():
        result = torch.matmul(a, b)
    assert seen[0] is a
    assert seen[1] is b
    assert torch.equal(result, (a.float() @ b.float()).bfloat16())


def test_a_model_has_the_loss_and_gradients_of_one_whose_products_are_native() -> None:
    tokens = torch.arange(24).reshape(2, 12)

    def measured(dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
        model = tiny_model("llama").bfloat16()
        with patch(EMULATED, lambda: dtypes):
            loss = next_token_loss(model, tokens)
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    for native, emulated in zip(measured(()), measured(HALF), strict=True):
        torch.testing.assert_close(emulated, native, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("machine", "capability", "instructions", "expected"),
    [
        ("x86_64", "AVX2", {}, HALF),
        ("AMD64", "DEFAULT", {}, HALF),
        ("x86_64", "AVX512", {}, (torch.float16,)),
        ("x86_64", "AVX512", {"avx512_fp16": True}, ()),
        ("x86_64", "AVX512_VNNI", {"amx_fp16": True}, ()),
        ("arm64", "DEFAULT", {}, ()),
    ],
)
def test_what_a_processor_emulates(
    machine: str, capability: str, instructions: dict[str, bool], expected: tuple[torch.dtype, ...]
) -> None:
    with (
        patch("platform.machine", lambda: machine),
        patch("torch.backends.cpu.get_cpu_capability", lambda: capability),
        patch("torch.cpu.get_capabilities", lambda: instructions, create=True),
    ):
        assert tuple(emulated_dtypes()) == expected


@pytest.mark.skipif(not hasattr(functional, "grouped_mm"), reason="this torch has no grouped_mm")
def test_products_of_stacked_experts_are_those_of_float32(emulating: None) -> None:
    x, weight = drawn(0, 12, 16).bfloat16(), drawn(1, 3, 16, 8).bfloat16()
    ends = torch.tensor([3, 8, 12], dtype=torch.int32)
    plain = [x.float().requires_grad_(), weight.float().requires_grad_()]
    narrow = [x.requires_grad_(), weight.requires_grad_()]
    result = functional.grouped_mm(*narrow, offs=ends)
    parts = zip(plain[0].tensor_split([3, 8]), plain[1], strict=True)
    expected = torch.cat([rows @ matrix for rows, matrix in parts])
    torch.testing.assert_close(result, expected.bfloat16(), rtol=1e-2, atol=1e-6)
    upstream = drawn(2, 12, 8).bfloat16()
    result.backward(upstream)
    expected.backward(upstream.float())
    for value, reference in zip(narrow, plain, strict=True):
        assert value.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(value.grad, reference.grad.bfloat16(), rtol=1e-2, atol=1e-2)


def test_inputs_are_kept_for_the_gradients_of_weights_alone(emulating: None) -> None:
    x = drawn(0, 8, 16).bfloat16().requires_grad_()
    weight = drawn(1, 4, 16).bfloat16()
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        functional.linear(x, weight)
        assert kept == [weight.numel()]
        functional.linear(x.detach(), weight.clone().requires_grad_())
    assert kept == [weight.numel(), x.numel()]


@pytest.mark.parametrize("name", ["addmm", "baddbmm"])
def test_methods_of_tensors_that_multiply_are_covered(name: str, emulating: None) -> None:
    lead = (2,) if name == "baddbmm" else ()
    added, left, right = drawn(0, *lead, 5, 3), drawn(1, *lead, 5, 64), drawn(2, *lead, 64, 3)
    halves = [value.bfloat16() for value in (added, left, right)]
    result = getattr(halves[0], name)(*halves[1:], beta=0.5)
    expected = 0.5 * halves[0].float() + halves[1].float() @ halves[2].float()
    torch.testing.assert_close(result, expected.bfloat16(), rtol=8e-3, atol=1e-6)


def test_a_thread_that_inherits_the_context_does_not_count_as_within_it(emulating: None) -> None:
    x, weight = drawn(0, 8, 64).bfloat16(), drawn(1, 8, 64).bfloat16()
    expected = functional.linear(x.float(), weight.float()).bfloat16()

    def product() -> Tensor:
        with half_products():
            return functional.linear(x, weight)

    assert torch.equal(asyncio.run(asyncio.to_thread(product)), expected)
