"""The tail exponent: Hill's estimator against plain loops, and against laws made to measure."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity import TailStart, tail_exponent

STARTS: tuple[TailStart, ...] = ("peak", "median")


def heavy(shape: tuple[int, int], seed: int, tail: float = 0.5) -> Tensor:
    """Random weights whose rows differ in scale, the more the heavier."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(shape[0], 1, generator=generator).mul(tail).exp()
    return torch.randn(shape, generator=generator) * scale


def with_spectrum(eigenvalues: list[float], width: int, seed: int = 0) -> Tensor:
    """A matrix (n, width) float64 whose squared singular values are the given ones."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    left, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(width, n, dtype=torch.float64, generator=generator))
    singular = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    weight: Tensor = left * singular @ right.T
    return weight


def law(alpha: float, n: int) -> list[float]:
    """The quantiles of the power law with density exponent `alpha` from 1 up."""
    return [((i + 0.5) / n) ** (-1 / (alpha - 1)) for i in range(n)]


def hill(tail: list[float]) -> float:
    return 1 + len(tail) / math.fsum(math.log(value / tail[0]) for value in tail)


def distance(tail: list[float], alpha: float) -> float:
    return max(
        abs(1 - math.pow(value / tail[0], 1 - alpha) - rank / len(tail))
        for rank, value in enumerate(tail)
    )


def singular_squares(weight: Tensor) -> list[float]:
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2
    return sorted(values.tolist())


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 2**32 - 1))
def test_from_the_median_up(out: int, width: int, seed: int) -> None:
    weight = heavy((out, width), seed)
    spectrum = singular_squares(weight)
    if len(spectrum) == 2:
        return
    expected = hill(spectrum[len(spectrum) // 2 :])
    assert tail_exponent(weight, "median") == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_from_the_best_fit_near_the_peak_up(out: int, width: int, seed: int) -> None:
    weight = heavy((out, width), seed)
    spectrum = singular_squares(weight)
    filled, edges = np.histogram(np.log10(spectrum), bins=100)
    peak = 10 ** edges[filled.argmax()]
    tails = [
        spectrum[index:]
        for index, value in enumerate(spectrum[:-1])
        if 0.95 * peak <= value <= 1.5 * peak
    ]
    fits = {hill(tail): distance(tail, hill(tail)) for tail in tails}
    found = tail_exponent(weight)
    near = min(fits, key=lambda alpha: abs(alpha - found))
    assert found == pytest.approx(near, rel=1e-6)
    assert fits[near] == pytest.approx(min(fits.values()), abs=1e-6)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_a_power_law_is_found(alpha: float, start: TailStart) -> None:
    weight = with_spectrum(law(alpha, 400), 420)
    assert tail_exponent(weight, start) == pytest.approx(alpha, rel=0.05)


@pytest.mark.parametrize("start", STARTS)
def test_a_heavier_tail_has_a_smaller_exponent(start: TailStart) -> None:
    light, heavier = (tail_exponent(heavy((120, 90), 0, tail), start) for tail in (0.0, 1.5))
    assert heavier < light


@pytest.mark.parametrize("start", STARTS)
def test_scale_side_and_rotation_change_nothing(start: TailStart) -> None:
    weight = heavy((30, 50), 1).double()
    rotation, _ = torch.linalg.qr(heavy((50, 50), 2).double())
    expected = tail_exponent(weight, start)
    for same in (weight * 1000, weight / 1000, weight.T, weight @ rotation, weight.T.contiguous()):
        assert tail_exponent(same, start) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("start", STARTS)
def test_zero_eigenvalues_are_no_part_of_the_spectrum(start: TailStart) -> None:
    full = with_spectrum(law(2.5, 40), 60)
    deficient = torch.cat([full, full.new_zeros(25, 60)])
    assert tail_exponent(deficient, start) == pytest.approx(tail_exponent(full, start), rel=1e-9)
    doubled = torch.cat([full, full]) / math.sqrt(2)
    assert tail_exponent(doubled, start) == pytest.approx(tail_exponent(full, start), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_own_precision_is_taken(dtype: torch.dtype) -> None:
    weight = heavy((20, 30), 3).to(dtype)
    expected = hill(singular_squares(weight.float())[10:])
    assert tail_exponent(weight, "median") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 4), torch.ones(1, 8), torch.ones(8, 8), torch.eye(6)]
)
def test_spectra_without_a_tail_are_refused(weight: Tensor, start: TailStart) -> None:
    with pytest.raises(PrunerZeroError, match="spectrum of up_proj has no tail to fit"):
        tail_exponent(weight, start, name="up_proj")


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PrunerZeroError, match="weights of up_proj are not finite"):
        tail_exponent(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), name="up_proj")
