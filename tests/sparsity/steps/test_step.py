"""The order of steps, what options say, and what all steps do.

All steps name the matrix in nonsense, leave arguments alone, mind dead channels.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps.step import STEPS, Layer, Step, Updated, in_order, plan, run_steps
from tests.masks import keep_mask
from tests.sparsity.steps.kernels import layer_of
from tests.sparsity.steps.test_sweep import layer


def test_steps_that_change_the_mask_alone_come_first() -> None:
    assert in_order(["exact", "refine", "exact"]) == ("refine", "exact")
    assert in_order([]) == ()


@pytest.mark.parametrize(
    ("given", "chooser", "planned"),
    [
        ("exact refine", None, "refine exact"),
        # A step that chooses the mask runs first, and again where the mask changed.
        ("obs", "obs", "obs"),
        ("exact", "obs", "obs exact"),
        ("refine obs", "obs", "obs refine obs"),
        ("refine exact", "obs", "obs refine exact"),
    ],
)
def test_steps_are_planned(given: str, chooser: str | None, planned: str) -> None:
    assert [step.name for step in plan(given.split(), chooser)] == planned.split()


def test_steps_run_one_after_the_other_on_what_the_step_before_left() -> None:
    def run(layer: Layer) -> Updated:
        mask = torch.ones_like(layer.dense, dtype=torch.bool) if layer.mask is None else layer.mask
        return Updated(layer.weight + 1, mask, "added one")

    weight, gram = layer(3, 8)
    result = run_steps(layer_of(weight, gram), 2 * [Step("a", run, words="a", help="a")])
    torch.testing.assert_close(result.weight, weight + 2)
    assert result.note == "added one; added one"


def test_without_a_mask_in_the_end_it_is_an_error() -> None:
    weight, gram = layer(3, 8)
    for mask in (None, weight > 0):
        with pytest.raises(ValueError, match="no step has chosen a mask of matrix"):
            run_steps(layer_of(weight, gram, mask), [])


def test_raised_damping_is_told_where_a_step_is_damped() -> None:
    gram = torch.full((8, 8), 1.05).fill_diagonal_(1.0)
    mask = torch.arange(8).expand(4, 8) < 4
    start = layer_of(layer(4, 8)[0], gram, mask)
    refined = run_steps(start, plan(["refine"]))
    assert refined.note is None
    for names_of_steps in (["exact"], ["obs"], ["refine", "exact"]):
        solved = run_steps(replace(start, mask=refined.mask), plan(names_of_steps))
        assert solved.note == "damping raised to 0.1 for the Cholesky factor"


@pytest.mark.parametrize("name", [name for name, step in STEPS.items() if step.option])
def test_the_help_of_an_option_says_what_the_steps_say(name: str) -> None:
    step = STEPS[name]
    description = str(PruneSettings.model_fields[str(step.option)].description)
    assert step.help in description
    if step.option == "update":
        assert f"{name}, {step.help}" in description
        searched = str(SearchSettings.model_fields["update"].description)
        assert f"{name}, {step.help}" in searched


def run(step: str, **given: Any) -> Updated:
    """The result of one step on a layer of the model."""
    return STEPS[step].run(layer_of(**given, name="o_proj"))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nonsense_names_the_matrix(step: str, bad: float) -> None:
    weight, gram = layer(4, 8)
    mask = torch.arange(8).expand(4, 8) < 4
    damaged, broken = weight.clone(), gram.clone()
    damaged[1, 1] = broken[2, 3] = bad
    with pytest.raises(PrunerZeroError, match="weights of o_proj are not finite"):
        run(step, weight=damaged, gram=gram, mask=mask)
    with pytest.raises(PrunerZeroError, match="XᵀX of o_proj is not finite"):
        run(step, weight=weight, gram=broken, mask=mask)
    for shape in ((2, 8), (1, 8)):
        with pytest.raises(ValueError, match="mask of o_proj"):
            run(step, weight=weight, gram=gram, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("step", [name for name, step in STEPS.items() if step.damps])
def test_a_gram_that_no_damping_helps_names_the_matrix(step: str) -> None:
    weight, _ = layer(4, 8)
    indefinite = torch.full((8, 8), -5.0).fill_diagonal_(1.0)
    with pytest.raises(PrunerZeroError, match="o_proj is not positive definite"):
        run(step, weight=weight, gram=indefinite, mask=weight > 0)


@pytest.mark.parametrize(("step", "masked"), [("refine", True), ("obs", 0)])
def test_a_width_that_m_does_not_divide_names_the_matrix(step: str, masked: bool) -> None:
    weight, gram = layer(4, 10)
    mask = torch.arange(10).expand(4, 10) < 5 if masked else None
    with pytest.raises(PrunerZeroError, match="10 of o_proj is not divisible by 4"):
        run(step, weight=weight, gram=gram, mask=mask, pattern=SemiStructured(2, 4))


@pytest.mark.parametrize(("step", "masked"), [*((name, True) for name in STEPS), ("obs", False)])
def test_arguments_are_left_alone_and_the_result_is_the_same_again(step: str, masked: bool) -> None:
    weight, gram = layer(8, 64)
    pattern = SemiStructured(2, 4)
    mask = keep_mask(torch.rand(8, 64, generator=torch.Generator().manual_seed(0)), pattern)
    copies = [tensor.clone() for tensor in (weight, gram, mask)]
    state = torch.get_rng_state()
    given: dict[str, Any] = {"gram": gram, "mask": mask if masked else None, "pattern": pattern}
    first, second = run(step, weight=weight, **given), run(step, weight=weight, **given)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.mask, second.mask)
    assert run(step, weight=weight.bfloat16(), **given).weight.dtype == torch.float32
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, (weight, gram, mask), copies))


@pytest.mark.parametrize(
    "step", [name for name, step in STEPS.items() if step.changes == "weights"]
)
def test_channels_that_were_never_active_lose_their_weights(step: str) -> None:
    weight, gram = layer(6, 20)
    gram[:, [3, 11]] = gram[[3, 11]] = 0.0
    kept = torch.ones(6, 20, dtype=torch.bool)
    result = run(step, weight=weight, gram=gram, mask=kept, pattern=Unstructured(0.0))
    alive = [j for j in range(20) if j not in (3, 11)]
    assert (result.weight[:, [3, 11]] == 0).all()
    assert torch.equal(result.weight[:, alive], weight[:, alive])


@pytest.mark.parametrize("kept_first", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_channels_that_were_never_active_are_pruned_first(kept_first: bool, scale: float) -> None:
    weight, gram = layer(10, 16)
    weight[:, :4] *= scale
    gram[:, :4] = gram[:4] = 0.0
    mask = (torch.arange(16).expand(10, 16) < 8) == kept_first
    result = run("refine", weight=weight, gram=gram, mask=mask)
    assert not result.mask[:, :4].any()
    assert result.weight.isfinite().all()
