"""The registry of steps: the order in which they run, which of them aims, what options say."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.search import SearchSettings
from pruner_zero.sparsity.steps.registry import STEPS, in_order, plan, run_steps
from pruner_zero.sparsity.steps.step import Layer, Step, Updated
from tests.sparsity.steps.kernels import layer_of
from tests.sparsity.steps.test_sweep import layer


def names(steps: tuple[Step, ...]) -> list[str]:
    return [step.name for step in steps]


def test_steps_that_change_the_mask_alone_come_first() -> None:
    assert in_order(["exact", "refine", "exact"]) == ("refine", "exact")
    assert in_order([]) == ()


def test_neighbours_become_the_step_that_joins_them() -> None:
    assert names(plan(["exact", "refine"])) == ["refine+exact"]
    assert names(plan(["refine", "obs"])) == ["refine", "obs"]


def test_a_step_that_chooses_the_mask_runs_first_and_again_where_the_mask_changed() -> None:
    assert names(plan(["obs"], "obs")) == ["obs"]
    assert names(plan(["exact"], "obs")) == ["obs", "exact"]
    assert names(plan(["refine", "obs"], "obs")) == ["obs", "refine", "obs"]
    assert names(plan(["refine", "exact"], "obs")) == ["obs", "refine+exact"]


def recording(calls: list[tuple[str, bool]], name: str, **facts: bool) -> Step:
    """A step that notes whether it was to aim, and adds one to all weights."""

    def run(layer: Layer) -> Updated:
        calls.append((name, layer.required_hessian.target is not None))
        mask = torch.ones_like(layer.dense, dtype=torch.bool) if layer.mask is None else layer.mask
        return Updated(layer.weight + 1, mask, f"{name} ran")

    return Step(name, run, words=name, help=name, **facts)  # type: ignore[arg-type]


def test_the_last_step_that_can_aim_and_one_that_chooses_the_mask_aim() -> None:
    weight, gram = layer(3, 8)
    calls: list[tuple[str, bool]] = []
    make: Callable[..., Step] = lambda name, **facts: recording(calls, name, **facts)  # noqa: E731
    steps = [make("a", aims=True), make("b", aims=True), make("c", aims=True), make("d")]
    start = layer_of(weight, gram, target=gram + 1)
    result = run_steps(start, steps)
    assert calls == [("a", True), ("b", False), ("c", True), ("d", False)]
    torch.testing.assert_close(result.weight, weight + 4)
    assert result.note == "a ran; b ran; c ran; d ran"


def test_without_a_mask_in_the_end_it_is_an_error() -> None:
    weight, gram = layer(3, 8)
    with pytest.raises(ValueError, match="no step has chosen a mask of matrix"):
        run_steps(layer_of(weight, gram), [])
    with pytest.raises(ValueError, match="no step has chosen a mask of matrix"):
        run_steps(layer_of(weight, gram, weight > 0), [])


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
