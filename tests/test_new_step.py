"""A step after the mask that a package adds: one file, and every verb knows it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.row_sample import closed_form_error
from pruner_zero.measuring.comparing import compare
from pruner_zero.metric.grammar import parse
from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.recipe import describe_steps
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.sparsity.steps.step import STEPS, Layer
from tests.evolution.conftest import Build, build  # noqa: F401
from tests.evolution.test_update import by_magnitude
from tests.test_plugins import Install, install  # noqa: F401
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

RESCALE = '''
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.sparsity.steps.step import Step, Updated

def rescale(layer):
    """Each row keeps its norm: the kept weights are scaled up."""
    kept = layer.weight * layer.required_mask
    factor = layer.weight.norm(dim=1, keepdim=True) / kept.norm(dim=1, keepdim=True)
    return Updated(kept * factor, layer.required_mask, "rescaled")

STEP = Step(
    "rescale", rescale, words="each row scaled to its old norm", help="row norms", needs_gram=False
)
'''


@pytest.fixture
def rescale(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """An installed package with the step."""
    monkeypatch.setattr(STEPS, "_loaded", {})
    install("plug_rescale", "steps", {"rescale": "STEP"}, RESCALE)
    return


def pruned(prose: str, text: str, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """The weights that `prune` leaves of a tiny model, and its result."""
    model = tiny_model("llama")
    arguments: dict[str, Any] = {
        "tokenizer": tiny_tokenizer(),
        "calibration": [prose[: len(prose) // 2]],
        "sparsity": 0.5,
        "windows": 4,
        "seqlen": 16,
        "cache": folder / "cache",
        **options,
    }
    result = prune(model, text, **arguments)
    return {matrix.name: matrix.weight for matrix in find_matrices(model)}, result


@pytest.mark.usefixtures("rescale")
def test_prune_runs_it_and_tells_it(prose: str, tmp_path: Path) -> None:
    dense = {matrix.name: matrix.weight for matrix in find_matrices(tiny_model("llama"))}
    plain, _ = pruned(prose, "magnitude", tmp_path)
    scaled, result = pruned(prose, "magnitude+rescale", tmp_path)
    for name, weight in scaled.items():
        assert torch.equal(weight == 0, plain[name] == 0)
        torch.testing.assert_close(weight.norm(dim=1), dense[name].norm(dim=1))
    assert {record.note for record in result.records} == {"rescaled"}
    method = parse_recipe("magnitude+rescale", sparsity=0.5)
    assert describe_steps(method.steps) == ", each row scaled to its old norm"
    assert method.kinds == frozenset()
    assert parse_recipe("wanda+rescale+refine", sparsity=0.5).steps == ("refine", "rescale")


@pytest.mark.usefixtures("rescale")
def test_compare_reads_it_in_a_method(prose: str) -> None:
    table = compare(
        tiny_model("llama"),
        "wanda,wanda+rescale,wanda+refine+rescale",
        tokenizer=tiny_tokenizer(),
        calibration=[prose],
        text=[prose],
        sparsity=0.5,
        windows=4,
        seqlen=16,
        windows_eval=2,
    )
    assert [row["steps"] for row in table.rows] == [[], ["rescale"], ["refine", "rescale"]]
    assert len({row["loss"] for row in table.rows}) == 3


@pytest.mark.usefixtures("rescale")
def test_the_search_judges_candidates_by_it(
    build: Build,  # noqa: F811
    prose: str,
    tmp_path: Path,
) -> None:
    evaluator = build(update="rescale")
    expected, _ = pruned(prose, "W * X+rescale", tmp_path, mode="one-shot")
    with evaluator.masked.masked(parse("W * X"), "row"):
        for matrix in evaluator.masked.matrices:
            assert torch.equal(matrix.weight, expected[matrix.name])
    errors = [
        closed_form_error(sample, by_magnitude(sample))
        for sample in (evaluator.sample, build().sample)
    ]
    assert errors[0] != errors[1]


def test_a_step_that_is_no_step_is_refused_in_one_line(
    install: Install,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(STEPS, "_loaded", {})
    install("plug_nothing", "steps", {"nothing": "STEP"}, "STEP = 3")
    with pytest.raises(PrunerZeroError, match="plug_nothing, is not of type Step"):
        parse_recipe("wanda+nothing", sparsity=0.5)


def test_a_layer_says_what_a_step_lacks() -> None:
    check: Callable[[Layer], Any] = STEPS["refine"].run
    layer = Layer(torch.ones(2, 4), None, SemiStructured(2, 4))
    with pytest.raises(ValueError, match="the step needs the Gram matrix"):
        check(layer)
