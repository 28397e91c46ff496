"""The memory plan: flat in depth, growing with what grows, and refused with a number that works."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.calibration import Kind
from pruner_zero.models import load_offloaded
from pruner_zero.pruning.memory_plan import Sizes, parse_memory, plan_memory, readable, sizes_of
from tests.conftest import save_tiny
from tests.text.refusals import refusal
from tests.tiny_models import HIDDEN, INNER, VOCABULARY

GIB = 1 << 30

# LLaMA-2-7B in bf16, by hand.
LARGE = Sizes(
    block=2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096),
    outside=2 * (2 * 32000 * 4096 + 4096),
    matrix=4096 * 11008,
    matrices=4 * 4096**2 + 3 * 4096 * 11008,
    width=11008,
    gram=6 * 4096**2 + 11008**2,
    outputs=5 * 4096 + 2 * 11008,
    hidden=4096,
    vocabulary=32000,
    attention=0,
    depth=32,
    itemsize=2,
    weights=13_476_831_232,
)
TREE: frozenset[Kind] = frozenset({"G"})
WANDA: frozenset[Kind] = frozenset({"X"})
SPARSEGPT: frozenset[Kind] = frozenset({"gram"})
EVERY = [frozenset[Kind](), TREE, WANDA, SPARSEGPT, TREE | WANDA | SPARSEGPT]


def plan(sizes: Sizes = LARGE, kinds: frozenset[Kind] = TREE, **given: Any) -> Any:
    asked = {"order": "sequential", "windows": 24, "seqlen": 1024, **given}
    return plan_memory(sizes, kinds, **asked)


def test_seven_billion_fit_where_they_are_wanted() -> None:
    base = 450 << 20
    assert plan(kinds=TREE, base=base).peak <= 6 * GIB
    assert plan(kinds=WANDA, base=base).peak <= 3 * GIB
    assert plan(kinds=SPARSEGPT, base=base).peak <= 8 * GIB


@pytest.mark.parametrize("order", ["sequential", "one-shot"])
@pytest.mark.parametrize("kinds", EVERY)
def test_depth_costs_disk_and_no_memory(kinds: frozenset[Kind], order: str) -> None:
    deep = replace(LARGE, depth=320, weights=10 * LARGE.weights)
    shallow = plan(kinds=kinds, order=order)
    assert plan(deep, kinds, order=order).peak == shallow.peak
    assert plan(deep, kinds, order=order).disk > shallow.disk


@pytest.mark.parametrize("kinds", EVERY)
def test_more_windows_cost_memory_only_where_they_are_kept_in_it(kinds: frozenset[Kind]) -> None:
    assert plan(kinds=kinds, windows=240).peak == plan(kinds=kinds).peak
    few, many = (plan(kinds=kinds, windows=n, budget=900 * GIB) for n in (24, 2400))
    kept = bool(kinds - {"G"})
    assert few.activations_on_disk is (not kept)
    assert (many.peak > few.peak) is kept


def test_what_an_allocation_looks_at_is_reckoned_with() -> None:
    by_error: frozenset[Kind] = frozenset({"G", "gram"})
    plain, shared = plan(kinds=WANDA), plan(kinds=WANDA, allocation=by_error)
    assert shared.step in ("allocation", "gradients", "the loss")
    assert shared.peak > plain.peak + 4 * LARGE.matrices / 2
    assert shared.disk > plain.disk + 4 * (LARGE.gram + LARGE.matrices) * LARGE.depth
    assert plan(kinds=TREE | SPARSEGPT, order="one-shot", allocation=by_error).disk == (
        plan(kinds=TREE | SPARSEGPT, order="one-shot").disk
    )


def test_whatever_the_process_takes_already_is_counted() -> None:
    assert plan(base=GIB).peak == plan().peak + GIB


@pytest.mark.parametrize("kinds", EVERY)
@pytest.mark.parametrize("order", ["sequential", "one-shot"])
def test_the_number_in_the_refusal_is_enough_and_not_far_too_much(
    kinds: frozenset[Kind], order: str
) -> None:
    message = refusal(lambda: plan(kinds=kinds, order=order, budget=GIB // 4))
    asked = message.split("at least --memory ")[1].split(",")[0]
    enough = parse_memory(asked)
    assert plan(kinds=kinds, order=order, budget=enough).peak <= enough
    refusal(lambda: plan(kinds=kinds, order=order, budget=int(enough * 0.9)))


@pytest.mark.parametrize("kinds", EVERY)
def test_a_budget_is_kept(kinds: frozenset[Kind]) -> None:
    for tenths in range(30, 200, 7):
        budget = tenths * GIB // 10
        if plan(kinds=kinds).peak <= budget:
            assert plan(kinds=kinds, windows=500, budget=budget).peak <= budget


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 * GIB), ("0.5 gib", GIB // 2), ("800MB", 800_000_000), ("12B", 12), ("1KiB", 1024)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "6", "6G", "-1GiB", "0MiB", "lots", "1GiB2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    assert "--memory" in refusal(lambda: parse_memory(text))


@pytest.mark.parametrize("size", [1, MIB := 1 << 20, MIB + 1, 3 * GIB - 1, 7 * GIB // 3])
def test_a_size_is_told_rounded_up(size: int) -> None:
    assert size <= parse_memory(readable(size)) <= size * 1.1 + MIB


def test_the_sizes_of_a_model_are_counted(tmp_path: Path) -> None:
    sizes = sizes_of(load_offloaded(save_tiny(tmp_path, blocks=3)))
    heads, narrow = 4 * 8, 2 * 8
    own = HIDDEN * (2 * heads + 2 * narrow) + 3 * HIDDEN * INNER
    assert sizes == Sizes(
        block=4 * (own + 2 * HIDDEN),
        outside=4 * (2 * VOCABULARY * HIDDEN + HIDDEN),
        matrix=HIDDEN * INNER,
        matrices=own,
        width=INNER,
        gram=6 * HIDDEN**2 + INNER**2,
        outputs=heads + 2 * narrow + HIDDEN + 2 * INNER + HIDDEN,
        hidden=HIDDEN,
        vocabulary=VOCABULARY,
        attention=0,
        depth=3,
        itemsize=4,
        weights=4 * (3 * (own + 2 * HIDDEN) + 2 * VOCABULARY * HIDDEN + HIDDEN),
    )
    # Experts are stored one by one and held as one parameter.
    mixture = sizes_of(load_offloaded(save_tiny(tmp_path / "moe", "mixtral")))
    assert mixture.block > mixture.weights - mixture.outside - mixture.block // 2


def test_swaps_that_are_solved_for_take_more_than_either() -> None:
    solved, swapped = (plan(kinds=SPARSEGPT, solves=True, swaps=swaps) for swaps in (False, True))
    assert swapped.peak > solved.peak + 4 * 10 * LARGE.matrix
