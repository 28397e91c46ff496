"""A recipe in words: a line for each part, in the order of work."""

from typing import Any

import pytest

from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.default import EVOLVED, IN_ROWS, PRICED
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.planning import plan_recipe, read_recipe
from tests.pruning.conftest import language_model

WRITTEN = "of text that the model writes"
PASSES = "each block: trained in {} passes towards the dense block's outputs"
OPEN = f"{PASSES}, its masks chosen anew meanwhile"
STEPS = "the whole: trained in {} steps towards the dense model's predictions"
RACE = "mask: the one that leaves the least divergence on held-out windows, of"
SEQUENTIAL = "order: sequential, block by block, each on the outputs of the pruned blocks before it"
ONE_SHOT = "order: one-shot, all statistics of the dense model"
SWEEP = "then: the remaining weights corrected by SparseGPT's sweep"
LEAST_SQUARES = "then: the remaining weights corrected by least squares"
COUNT = (
    "token count, how often tokens occur in the calibration text and how often the model expects "
    "them there"
)
EVOLVED_TEXT, PRICED_TEXT = (str(Metric.of(metric).expression) for metric in (EVOLVED, PRICED))
WITHOUT_GRADIENTS = [f"  {PRICED_TEXT} (50% global)", "  W * X (50% per row)"]
MASKS = [RACE, f"  {EVOLVED_TEXT} (50% global)", *WITHOUT_GRADIENTS]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, [f"192 windows of 256 tokens {WRITTEN}", *MASKS, OPEN.format(4), STEPS.format(40)]),
        (
            {"pattern": "2:4", "windows": 8},
            [
                f"8 windows of 256 tokens {WRITTEN}",
                RACE,
                *(f"  {Metric.of(metric).expression} (2:4)" for metric in IN_ROWS),
                OPEN.format(4),
                STEPS.format(40),
            ],
        ),
        ({"metric": "magnitude"}, ["mask: W (50% per row)", ONE_SHOT]),
        (
            {"metric": "wanda+obs", "calibration": "builtin:pydoc"},
            [
                "24 windows of 1024 tokens of builtin:pydoc",
                "mask: W * X (50% per row)",
                SWEEP,
            ],
        ),
        (
            {
                "structure": "channels",
                "sparsity": 0.3,
                "calibration": {"a.txt": 1.0, "self": 2.0},
            },
            [
                "96 windows of 1024 tokens of a.txt, self",
                "removed: 11.7% of the parameters, of channels, by sqrt(F) * column_normalize(W)",
                LEAST_SQUARES,
                PASSES.format(1).replace("passes", "pass"),
                STEPS.format(120),
            ],
        ),
        (
            {"structure": "blocks"},
            [
                f"96 windows of 256 tokens {WRITTEN}",
                "removed: 50% of the blocks, by block influence, 1 minus the cosine of a block's "
                "input and output",
                ONE_SHOT,
            ],
        ),
        (
            {"structure": "vocabulary", "calibration": "builtin:pydoc"},
            [
                "192 windows of 256 tokens of builtin:pydoc",
                f"removed: 50% of the tokens, by {COUNT}",
            ],
        ),
        (
            {"structure": "vocabulary", "parameters": "0.9", "distill": 3},
            [
                f"192 windows of 256 tokens {WRITTEN}",
                f"removed: vocabulary until 0.9 of the parameters are left, by {COUNT}",
                STEPS.format(3),
            ],
        ),
    ],
    ids=str,
)
def test_each_part_has_a_line_in_the_order_of_work(
    options: dict[str, Any], lines: list[str]
) -> None:
    settings = dict(options)
    named = (settings.pop("metric", None), settings.pop("calibration", None))
    if not {"pattern", "parameters"} & settings.keys():
        settings.setdefault("sparsity", 0.5)
    read = read_recipe("some", *named, None, settings)
    recipe = plan_recipe(*read, language_model("llama", blocks=4))
    if recipe.text:
        lines = [f"text: {lines[0]}", *lines[1:]]
    if options.get("structure") != "vocabulary" and lines[-1] != ONE_SHOT:
        lines.append(SEQUENTIAL)
    assert recipe.lines() == lines == recipe.to_json()["recipe"]


def test_wide_matrices_have_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.models.matrices.MANY_INPUTS", 32)
    read = read_recipe("some", None, None, None, {"sparsity": 0.5})
    assert plan_recipe(*read, language_model("llama")).lines() == [
        f"text: 384 windows of 256 tokens {WRITTEN}",
        RACE,
        *WITHOUT_GRADIENTS,
        PASSES.format(2),
        STEPS.format(60),
        SEQUENTIAL,
    ]


def test_masks_of_wide_matrices_stay_while_blocks_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = parse_recipe("wanda+reconstruct=1", sparsity=0.5)
    assert recipe.fitted(language_model("llama")).opens_masks
    monkeypatch.setattr("pruner_zero.models.matrices.MANY_INPUTS", 32)
    assert not recipe.fitted(language_model("llama")).opens_masks
