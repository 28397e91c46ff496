"""SparseGPT: the textbook's result, exact counts, honest damping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.sparsity.hessian import Hessian
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.threshold import pruned_count
from tests.elsewhere import HERE, elsewhere, waits
from tests.masks import keep_mask
from tests.sparsity import reference
from tests.sparsity.kernels import sparsegpt


def layer(
    rows: int, columns: int, seed: int = 0, tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """A weight and the gram of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(tokens or 4 * columns, columns, generator=generator)
    inputs = inputs + inputs @ torch.randn(columns, columns, generator=generator) / columns**0.5
    return weight, inputs.T @ inputs


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max()
    assert torch.allclose(actual.double(), expected.double(), rtol=1e-4, atol=float(1e-4 * scale))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.floats(0, 0.95),
    st.integers(1, 48),
)
def test_a_given_mask_gives_the_textbook_weights(
    rows: int, columns: int, seed: int, sparsity: float, block_size: int
) -> None:
    weight, gram = layer(rows, columns, seed)
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) >= sparsity
    result = sparsegpt(weight, gram, Unstructured(0.5), mask=mask, block_size=block_size)
    assert torch.equal(result.mask, mask)
    assert_close(result.weight, reference.obs_columns(weight, gram, mask))


@pytest.mark.parametrize("block_size", [8, 16, 20, 64])
def test_blocks_are_chosen_as_in_the_textbook(block_size: int) -> None:
    weight, gram = layer(12, 40)

    def lowest_of_block(scores: Tensor, _: int) -> Tensor:
        return reference.keep_matrices([scores], 0.6)[0]

    result = sparsegpt(weight, gram, Unstructured(0.6, "block"), block_size=block_size)
    expected, mask = reference.sparsegpt_choosing(weight, gram, block_size, lowest_of_block)
    assert torch.equal(result.mask, mask)
    assert_close(result.weight, expected)


def test_rows_of_blocks_are_chosen_as_in_the_textbook() -> None:
    weight, gram = layer(12, 40)

    def lowest_of_rows(scores: Tensor, start: int) -> Tensor:
        width = scores.shape[1]
        pruned = reference.zeros_in(start + width, 0.7) - reference.zeros_in(start, 0.7)
        return reference.keep_groups(scores, width, pruned)

    result = sparsegpt(weight, gram, Unstructured(0.7, "row"), block_size=16)
    expected, mask = reference.sparsegpt_choosing(weight, gram, 16, lowest_of_rows)
    assert torch.equal(result.mask, mask)
    assert_close(result.weight, expected)


@pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 40), (1, 3, 39), (5, 8, 40), (7, 20, 40)])
@pytest.mark.parametrize("block_size", [2, 16, 128])
def test_groups_are_chosen_as_in_the_textbook(
    n: int, m: int, columns: int, block_size: int
) -> None:
    weight, gram = layer(12, columns)

    def lowest_of_group(scores: Tensor, _: int) -> Tensor:
        return reference.keep_groups(scores, m, n)

    result = sparsegpt(weight, gram, SemiStructured(n, m), block_size=block_size)
    expected, mask = reference.sparsegpt_choosing(weight, gram, m, lowest_of_group)
    assert torch.equal(result.mask, mask)
    assert_close(result.weight, expected)


LOCAL_PATTERNS = [Unstructured(0.6, "block"), Unstructured(0.7, "row"), SemiStructured(3, 8)]


@pytest.mark.parametrize("pattern", [*LOCAL_PATTERNS, SemiStructured(16, 32)])
def test_a_device_is_waited_for_as_often_whatever_the_number_of_columns(pattern: Pattern) -> None:
    def waited(columns: int) -> list[str]:
        weight, gram = layer(6, columns)
        with elsewhere():
            W, C = weight.to(HERE), gram.to(HERE)
            with waits() as operations:
                sparsegpt(W, C, pattern)
        return operations

    assert waited(64) == waited(192)


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.7])
def test_counts_are_exact(sparsity: float) -> None:
    weight, gram = layer(10, 300, tokens=400)
    by_block = sparsegpt(weight, gram, Unstructured(sparsity, "block")).mask
    for block in by_block.split(128, dim=1):
        assert (~block).sum() == pruned_count(block.numel(), sparsity)
    by_row = sparsegpt(weight, gram, Unstructured(sparsity, "row")).mask
    assert set((~by_row).sum(1).tolist()) == {pruned_count(300, sparsity)}


def test_pruned_weights_are_exactly_zero() -> None:
    weight, gram = layer(8, 32)
    result = sparsegpt(weight, gram, SemiStructured(2, 4))
    assert torch.equal(result.weight == 0, ~result.mask)
    assert not torch.signbit(result.weight[~result.mask]).any()


def test_uncorrelated_inputs_change_nothing_but_the_pruned_weights() -> None:
    weight, _ = layer(8, 200)
    gram = torch.diag(torch.rand(200) + 0.1)
    result = sparsegpt(weight, gram, Unstructured(0.5, "block"))
    assert torch.equal(result.weight, weight.masked_fill(~result.mask, 0.0))


@pytest.mark.parametrize("seed", range(3))
def test_the_update_lowers_the_error_of_the_mask(seed: int) -> None:
    weight, gram = layer(16, 150, seed)
    H = reference.damped(gram)
    for pattern in (Unstructured(0.5, "block"), Unstructured(0.7, "row"), SemiStructured(2, 3)):
        result = sparsegpt(weight, gram, pattern)
        masked = weight.masked_fill(~result.mask, 0.0)
        updated = reference.error_under(H, weight - result.weight)
        assert updated < reference.error_under(H, weight - masked)


def test_a_multiple_of_the_gram_is_the_same_gram() -> None:
    weight, gram = layer(8, 64)
    gram[:, 5] = gram[5] = 0.0
    plain = sparsegpt(weight, gram, Unstructured(0.5, "block"))
    scaled = sparsegpt(weight, gram * 2 / 1024, Unstructured(0.5, "block"))
    assert torch.equal(plain.mask, scaled.mask)
    assert_close(scaled.weight, plain.weight)


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_scopes_beyond_a_block_need_a_mask(scope: str) -> None:
    weight, gram = layer(4, 8)
    pattern = Unstructured(0.5, scope)  # type: ignore[arg-type]
    with pytest.raises(PrunerZeroError, match="set scope to block or row, or give a mask"):
        sparsegpt(weight, gram, pattern)
    mask = weight.abs() > 0.5
    assert torch.equal(sparsegpt(weight, gram, pattern, mask=mask).mask, mask)


def test_channels_that_were_never_active_are_pruned_first() -> None:
    weight, gram = layer(6, 20)
    gram[:, [3, 11]] = gram[[3, 11]] = 0.0
    chosen = sparsegpt(weight, gram, Unstructured(0.1, "block"))
    assert not chosen.mask[:, [3, 11]].any()
    result = sparsegpt(weight, torch.zeros(20, 20), Unstructured(0.5, "block"))
    assert (result.weight == 0).all()


def test_masks_of_the_room_fit_the_update() -> None:
    weight, gram = layer(6, 24)
    mask = keep_mask(weight.abs() / Hessian(gram).diagonal, Unstructured(0.5, "matrix"))
    assert torch.equal(sparsegpt(weight, gram, Unstructured(0.5), mask=mask).mask, mask)
