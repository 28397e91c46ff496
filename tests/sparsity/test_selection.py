"""Masks: bit-equal to a stable sort of every comparison group, ties and all."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pruner_zero.choices import Scope
from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.pattern import Lazy
from pruner_zero.sparsity.selection import SemiStructured, Unstructured, keep_highest, keep_n_of_m
from pruner_zero.sparsity.threshold import _histogram, _histogram_anywhere
from tests.elsewhere import HERE, elsewhere, waits
from tests.masks import keep_mask
from tests.sparsity import reference

DENORMAL, HUGE = 1e-45, 3.4e38
AWKWARD = [0.0, -0.0, DENORMAL, -DENORMAL, 1e-39, HUGE, -HUGE, 1.0, -1.0, 1.0000001]

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 9)
sparsities = st.one_of(
    st.sampled_from([0.0, 0.29, 0.3, 0.5, 0.6, 0.7, 0.99]), st.floats(0, 1, exclude_max=True)
)
dtypes = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])


def chosen_globally(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    named = {f"matrix {index}": matrix for index, matrix in enumerate(scores)}
    return list(Unstructured(sparsity, "global").choose(named).values())


def random_scores(shape: tuple[int, int], seed: int) -> Tensor:
    """Scores of one of several kinds, most with ties; the seed picks the kind and layout too."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(5)
    values: NDArray[np.float64] = rng.standard_normal(shape)
    if kind == 1:
        values = rng.choice(AWKWARD, shape)
    elif kind == 2:
        # Both zeros among them.
        values = rng.integers(-3, 4, shape).astype(np.float64)
        values *= np.where(rng.random(shape) < 0.5, 1.0, -1.0)
    elif kind == 3:
        values = np.full(shape, rng.standard_normal())
    elif kind == 4:
        values[rng.random(shape) < 0.5] = rng.choice(values.flatten())
    scores = torch.from_numpy(values).float()
    layout = rng.integers(3)
    if layout == 1:
        return scores.t().contiguous().t()
    if layout == 2:
        return scores.repeat(1, 2)[:, : shape[1]]
    return scores


def finite(scores: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    return scores.clamp(-limit, limit).to(dtype)


@settings(max_examples=200, deadline=None)
@given(sides, st.integers(1, 40), seeds, sparsities, dtypes)
def test_rows_and_matrix(
    out: int, width: int, seed: int, sparsity: float, dtype: torch.dtype
) -> None:
    scores = finite(random_scores((out, width), seed), dtype)
    mask = keep_mask(scores, Unstructured(sparsity, "row"))
    zeros = reference.zeros_in(width, sparsity)
    assert torch.equal(mask, reference.keep_groups(scores, width, zeros))
    assert set((~mask).sum(1).tolist()) == {zeros}
    mask = keep_mask(scores, Unstructured(sparsity, "matrix"))
    assert torch.equal(mask, reference.keep_matrices([scores], sparsity)[0])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 100, 127, 128, 129, 256, 300]), seeds, sparsities, dtypes
)
def test_blocks(out: int, width: int, seed: int, sparsity: float, dtype: torch.dtype) -> None:
    scores = finite(random_scores((out, width), seed), dtype)
    mask = keep_mask(scores, Unstructured(sparsity, "block"))
    assert torch.equal(mask, reference.keep_blocks(scores, sparsity))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=5),
    seeds,
    sparsities,
    st.lists(dtypes, min_size=5, max_size=5),
)
def test_global(
    shapes: list[tuple[int, int]], seed: int, sparsity: float, kinds: list[torch.dtype]
) -> None:
    scores = [
        finite(random_scores(shape, seed + index % 2), kind)
        for index, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    ]
    masks = chosen_globally(scores, sparsity)
    expected = reference.keep_matrices(scores, sparsity)
    assert all(torch.equal(*pair) for pair in zip(masks, expected, strict=True))


@settings(max_examples=200, deadline=None)
@given(sides, st.integers(1, 4), st.data(), seeds, dtypes)
def test_n_of_m(out: int, groups: int, data: st.DataObject, seed: int, dtype: torch.dtype) -> None:
    m = data.draw(st.integers(2, 20), label="m")
    n = data.draw(st.integers(1, m - 1), label="n")
    scores = finite(random_scores((out, groups * m), seed), dtype)
    mask = keep_mask(scores, SemiStructured(n, m))
    assert torch.equal(mask, reference.keep_groups(scores, m, n))


def test_ranks_in_wide_groups_do_not_wrap() -> None:
    # Ranks are kept in a byte where groups are narrow.
    scores = random_scores((3, 600), 0)
    mask = keep_mask(scores, SemiStructured(20, 300))
    assert torch.equal(mask, reference.keep_groups(scores, 300, 20))


@pytest.mark.parametrize("scope", ["row", "block", "matrix"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (0, 4), (4, 0)])
def test_tiny_shapes(scope: Scope, shape: tuple[int, int]) -> None:
    for sparsity in (0.0, 0.5):
        mask = keep_mask(torch.ones(shape), Unstructured(sparsity, scope))
        assert (mask.shape, mask.dtype) == (shape, torch.bool)


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.5), SemiStructured(2, 4), SemiStructured(9, 32)]
)
def test_many_chunks_agree_with_the_stable_sort(pattern: Unstructured | SemiStructured) -> None:
    torch.manual_seed(0)
    scores = (torch.randn(1100, 1024) * 50).round()
    width = pattern.m if isinstance(pattern, SemiStructured) else 1024
    groups = scores.view(-1, width)
    pruned = int(width * pattern.sparsity)
    order = groups.sort(dim=1, stable=True).indices[:, :pruned]
    expected = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False)
    assert torch.equal(keep_mask(scores, pattern), expected.view(scores.shape))


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e6])
def test_a_large_matrix_agrees_with_the_stable_sort(scale: float) -> None:
    torch.manual_seed(0)
    scores = (torch.randn(1100, 1024) * scale).round()
    pruned = scores.flatten().sort(stable=True).indices[: int(0.3 * scores.numel())]
    mask = keep_mask(scores, Unstructured(0.3, "matrix"))
    assert torch.equal(mask.flatten().logical_not().nonzero()[:, 0], pruned.sort().values)


# Groups in which most scores tie, infinities among them, which the kernel orders too.
few_scores = st.sampled_from([float("-inf"), -1.0, -0.0, 0.0, DENORMAL, 1.0, float("inf")])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 16), st.integers(1, 3), st.integers(1, 3), st.data())
def test_ranks_by_comparison_are_those_of_the_stable_sort_on_every_device(
    m: int, out: int, groups: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, m - 1), label="n")
    width = groups * m
    values = data.draw(st.lists(few_scores, min_size=out * width, max_size=out * width))
    scores = torch.tensor(values).view(out, width)
    expected = reference.keep_groups(scores, m, n)
    assert torch.equal(keep_n_of_m(scores, n, m), expected)
    with elsewhere():
        assert torch.equal(keep_n_of_m(scores.to(HERE), n, m).cpu(), expected)
        # As the sweep gives them, columns contiguous.
        swept = scores.t().contiguous().to(HERE).t()
        assert torch.equal(keep_n_of_m(swept, n, m).cpu(), expected)


@settings(max_examples=100, deadline=None)
@given(sides, st.integers(1, 40), st.data(), seeds)
def test_rows_elsewhere_are_those_here(
    out: int, width: int, data: st.DataObject, seed: int
) -> None:
    pruned = data.draw(st.integers(0, width), label="pruned")
    rows = random_scores((out, width), seed).contiguous()
    with elsewhere():
        mask = keep_highest(rows.to(HERE), pruned).cpu()
    assert torch.equal(mask, keep_highest(rows, pruned))


def test_nothing_waits_for_the_device_group_by_group() -> None:
    of_groups = (SemiStructured(n, m) for n, m in ((2, 4), (4, 8), (16, 32)))
    for pattern in (*of_groups, Unstructured(0.5, "row"), Unstructured(0.5, "block")):
        # Once a matrix: whether its scores are finite.
        with elsewhere():
            scores = torch.ones(3, 512).to(HERE)
            with waits() as waited:
                keep_mask(scores, pattern)
        assert waited == ["aten._local_scalar_dense.default"]


@settings(max_examples=50, deadline=None)
@given(sides, sides, seeds)
def test_both_histogram_kernels_agree(out: int, width: int, seed: int) -> None:
    scores = random_scores((out, width), seed)
    upper = _histogram(scores)
    assert np.array_equal(upper, _histogram_anywhere(scores))
    fullest = int(upper.argmax())
    lower = _histogram(scores, fullest)
    assert np.array_equal(lower, _histogram_anywhere(scores, fullest))


def test_global_streams_matrices_that_are_computed_on_access() -> None:
    def compute(name: str) -> Tensor:
        return random_scores((5, 6), int(name))

    lazy = Lazy(["1", "2", "3"], compute)
    masks = Unstructured(0.5, "global").choose(lazy)
    expected = reference.keep_matrices(list(lazy.values()), 0.5)
    assert all(torch.equal(*pair) for pair in zip(masks.values(), expected, strict=True))
    # One alone, as a resumed run asks for it.
    assert torch.equal(masks["3"], expected[2])
    assert chosen_globally([], 0.5) == []


def test_a_matrix_on_its_own_competes_with_itself_under_global() -> None:
    scores = random_scores((5, 6), 0)
    expected = keep_mask(scores, Unstructured(0.5, "matrix"))
    assert torch.equal(keep_mask(scores, Unstructured(0.5, "global")), expected)


def test_both_zeros_tie_and_huge_scores_are_finite() -> None:
    for scores in (torch.tensor([[0.0, -0.0, 0.0, -0.0]]), torch.full((1, 4), HUGE)):
        mask = keep_mask(scores, Unstructured(0.5, "matrix"))
        assert mask.tolist() == [[False, False, True, True]]


def test_scores_and_gradients_are_left_alone() -> None:
    scores = torch.randn(4, 8, requires_grad=True)
    before = scores.detach().clone()
    mask = keep_mask(scores, SemiStructured(2, 4))
    assert torch.equal(scores.detach(), before)
    assert not mask.requires_grad


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "pattern",
    [SemiStructured(2, 4), *(Unstructured(0.5, scope) for scope in ("row", "block", "matrix"))],
)
def test_non_finite_scores_name_the_module(
    bad: float, dtype: torch.dtype, pattern: Unstructured | SemiStructured
) -> None:
    scores = torch.ones(3, 8, dtype=dtype)
    scores[2, 5] = bad
    with pytest.raises(PrunerZeroError, match=r"layers\.3\.q_proj are not finite"):
        keep_mask(scores, pattern, "layers.3.q_proj")


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
def test_non_finite_scores_name_the_matrix_among_all() -> None:
    scores = {"q_proj": torch.ones(2, 2), "v_proj": torch.tensor([[1.0, float("nan")]])}
    with pytest.raises(PrunerZeroError, match="v_proj"):
        Unstructured(0.5, "global").choose(scores)


def test_misuse_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not \\(out, in\\)"):
        keep_mask(torch.ones(2), Unstructured(0.5))
    with pytest.raises(TypeError, match="float64"):
        keep_mask(torch.ones(2, 2, dtype=torch.float64), Unstructured(0.5))
