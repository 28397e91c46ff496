"""Candidates are judged after an update: on the model that `prune` leaves, and by a closed form."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pruner_zero.choices import Scope
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Task
from pruner_zero.evolution.row_sample import SampledMatrix, closed_form_error
from pruner_zero.metric.grammar import parse
from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning.prune import prune
from tests.evolution.conftest import Build
from tests.evolution.test_run import journal, run
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

METRIC = "W * X * G^0.5"


@pytest.mark.parametrize("update", ["obs", "exact"])
@pytest.mark.parametrize(
    ("architecture", "scope", "pattern"),
    [
        ("llama", "row", None),
        ("llama", "global", None),
        ("llama", "row", "2:4"),
        ("gpt2", "block", None),
        ("mixtral", "matrix", None),
    ],
)
def test_the_judged_model_is_the_model_that_pruning_leaves(
    build: Build,
    prose: str,
    tmp_path: Path,
    update: str,
    architecture: str,
    scope: Scope,
    pattern: str | None,
) -> None:
    zeros: dict[str, Any] = {"sparsity": None if pattern else 0.5, "pattern": pattern}
    masked = build(architecture, update=update, **zeros).masked
    expected = tiny_model(architecture)
    prune(
        expected,
        METRIC,
        tokenizer=tiny_tokenizer(),
        calibration=[prose[: len(prose) // 2]],
        scope=scope,
        update=update,
        mode="one-shot",
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
        **zeros,
    )
    before = {matrix.name: matrix.weight.clone() for matrix in masked.matrices}
    wanted = {matrix.name: matrix.weight for matrix in find_matrices(expected)}
    with masked.masked(parse(METRIC), scope):
        for matrix in masked.matrices:
            assert torch.equal(matrix.weight, wanted[matrix.name]), matrix.name
    for matrix in masked.matrices:
        assert torch.equal(matrix.weight, before[matrix.name])


def test_an_expert_that_no_token_chose_is_masked_and_left_alone(build: Build) -> None:
    masked = build("mixtral", update="exact", windows=1, seqlen=2).masked
    unreached = {matrix.name for matrix in masked.matrices} - set(masked.hessians)
    assert unreached
    with masked.masked(parse("W * X"), "row"):
        for matrix in masked.matrices:
            if matrix.name in unreached:
                dense = matrix.view(masked.dense[matrix.parameter_name])
                left = matrix.weight != 0
                assert left.any()
                assert torch.equal(matrix.weight[left], dense[left])


def least_error(matrix: SampledMatrix, mask: Tensor, shrinkage: float) -> tuple[float, float]:
    """Row by row by NumPy's solver: the errors weighed by sensitivity, and their plain sum."""
    gram = matrix.gram.double().numpy()
    H = gram + 0.01 * gram.diagonal().mean() * np.eye(len(gram))
    H += shrinkage * np.diag(gram.diagonal())
    felt = lost = 0.0
    for row, kept in enumerate(mask.numpy()):
        weight = matrix.weight[row].double().numpy()
        solved = np.zeros_like(weight)
        solved[kept] = np.linalg.solve(H[np.ix_(kept, kept)], (H @ weight)[kept])
        error = (weight - solved) @ gram @ (weight - solved)
        assert matrix.sensitivity is not None
        felt += matrix.share * float(matrix.sensitivity[row]) * error
        lost += error
    return felt, lost


def by_magnitude(sample: Sequence[SampledMatrix]) -> list[Tensor]:
    """The larger half of each matrix is kept, in stacks too."""
    magnitudes = [matrix.terminals["W"] for matrix in sample]
    medians = [values.flatten(-2).median(-1).values for values in magnitudes]
    return [
        values > median[..., None, None] for values, median in zip(magnitudes, medians, strict=True)
    ]


@pytest.mark.parametrize("update", ["obs", "exact"])
def test_the_closed_form_is_the_error_that_least_squares_leave(build: Build, update: str) -> None:
    # Sampled at 8 rows a matrix, all of which are solved for.
    evaluator = build(update=update)
    masks = by_magnitude(evaluator.sample)
    total = 0.0
    for matrix, mask in zip(evaluator.sample, masks, strict=True):
        # SparseGPT's sweep is as published; only least squares are shrunk, for few tokens.
        shrinkage = 2 * len(matrix.gram) / (4 * 16) if update == "exact" else 0.0
        felt, lost = least_error(matrix, mask, shrinkage)
        total += float(matrix.scale) * felt / (1 - lost / float(matrix.norms.sum())) ** 8
    assert closed_form_error(evaluator.sample, masks) == pytest.approx(math.log(total), abs=0.02)
    without = build().sample
    assert closed_form_error(without, by_magnitude(without)) > math.log(total) + 0.1


def test_sixteen_rows_stand_for_all_sampled_rows(build: Build) -> None:
    some, more = build(update="exact"), build(update="exact", sampled_weights=10**6)
    assert {len(matrix.weight) for matrix in more.sample} == {16, 32, 48}
    errors = [
        evaluator.run(Task(0, "reconstruction", "W * X", "row")).value for evaluator in (some, more)
    ]
    assert errors[0] == pytest.approx(errors[1], abs=0.5)
    assert errors[0] != errors[1]


def test_the_update_decides_what_is_found_and_workers_do_not(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    small = {"evaluations": 20}
    run(llama_folder, tmp_path / "none", text_file, **small)
    run(llama_folder, tmp_path / "one", text_file, update="obs", **small)
    run(llama_folder, tmp_path / "two", text_file, update="obs", workers=2, **small)
    assert journal(tmp_path / "one") == journal(tmp_path / "two")
    assert journal(tmp_path / "one")[1:] != journal(tmp_path / "none")[1:]
    with pytest.raises(PrunerZeroError, match=r"run of other settings \(update changed\)"):
        run(llama_folder, tmp_path / "one", text_file, update="exact", **small)
    with pytest.raises(PrunerZeroError, match=r"run of other settings \(update changed\)"):
        run(llama_folder, tmp_path / "one", text_file, **small)
