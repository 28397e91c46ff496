"""Metrics of whole units are judged on the model of `prune --structure`, and `prune` obeys."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate
from pruner_zero.evolution.evaluator import Task
from pruner_zero.evolution.racing import Racing, judge
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.evolution.row_sample import SampledMatrix, closed_form_error, sampled_masks
from pruner_zero.evolution.run import search
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import random_expression
from pruner_zero.execution.executor import SerialExecutor
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.recipe import Recipe
from tests.conftest import save_tiny
from tests.evolution.conftest import Build, tiny_settings
from tests.evolution.test_run import TINY, run, same_however_it_ran
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

METRIC = "W * X * G^0.5"


@pytest.mark.parametrize(
    ("architecture", "structure"),
    [("llama", "channels"), ("llama", "heads"), ("gemma3", "channels"), ("qwen3", "heads")],
)
def test_the_judged_model_computes_the_same_as_the_smaller_model(
    build: Build,
    prose: str,
    tmp_path: Path,
    architecture: str,
    structure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units: dict[str, Any] = {"structure": structure}
    masked = build(architecture, **units).masked
    # The search judges by statistics of the dense model.
    monkeypatch.setattr(Recipe, "order", "one-shot")
    whole: Any = masked.model
    smaller: Any = tiny_model(architecture)
    result = prune(
        smaller,
        METRIC,
        tokenizer=tiny_tokenizer(),
        calibration=[prose[: len(prose) // 2]],
        sparsity=0.5,
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
        **units,
    )
    assert result.language_model.model.num_parameters() < whole.num_parameters()
    # The search inverts the removed part, `prune` factorises the kept part, in fp32.
    near = 2e-4
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, smaller.config.vocab_size, (2, 16), generator=generator)
    with torch.no_grad():
        dense = whole(tokens).logits
        with masked.masked(parse(METRIC), "unit"):
            left = whole(tokens).logits
        assert torch.equal(whole(tokens).logits, dense)
        torch.testing.assert_close(left, smaller(tokens).logits, atol=near, rtol=near)
    assert not torch.allclose(left, dense, atol=1e-3)


def test_all_rows_of_a_matrix_lose_the_same_columns(build: Build) -> None:
    evaluator = build("llama", structure="channels")
    masks = sampled_masks(evaluator.sample, parse(METRIC), "unit", evaluator.masked.pattern)
    assert [sample.name.rpartition(".")[2] for sample in evaluator.sample] == ["down_proj"] * 2
    for mask in masks:
        assert torch.equal(mask, mask[:1].expand_as(mask))
        assert mask[0].float().mean() == pytest.approx(2 / 3)


@pytest.mark.parametrize("structure", ["channels", "heads"])
def test_the_metric_that_is_found_prunes(
    llama_folder: Path, text_file: Path, tmp_path: Path, structure: str
) -> None:
    study = run(llama_folder, tmp_path / "run", text_file, structure=structure)
    assert {record.candidate.scope for record in study.records} == {"unit"}
    metric = Metric.of(tmp_path / "run" / "best.json")
    assert metric.scope == "unit"
    chosen = dict(study.prune_options)
    assert chosen["structure"] == structure
    result = prune(
        llama_folder, chosen.pop("metric"), calibration=text_file, windows=4, seqlen=16, **chosen
    )
    assert result.metric.expression == metric.expression
    assert result.language_model.model.num_parameters() < result.parameters[0]
    for source in (metric, str(tmp_path / "run" / "best.json")):
        with pytest.raises(PrunerZeroError, match="found for whole units: add --structure"):
            prune(llama_folder, source, calibration=text_file, sparsity=0.5)


def test_only_candidates_with_the_same_masks_are_repeats(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit's score sums over all rows, of which no sample tells whether two masks are equal."""
    monkeypatch.setattr("pruner_zero.evolution.build._SAMPLED_WEIGHTS", 10**9)
    evaluator = build("llama", structure="heads")
    generator = np.random.default_rng(0)
    forms = {str(random_expression(generator, SearchSpace())) for _ in range(90)}
    candidates = [Candidate(at, parse(text), "unit") for at, text in enumerate(sorted(forms))]
    records = judge(candidates, Archive(tmp_path, {}), SerialExecutor(evaluator), Racing())

    def masks(record: Record) -> list[Tensor]:
        return list(evaluator.masked.masks(record.candidate.expression, "unit"))

    repeats = [record for record in records if record.evaluation.same_as is not None]
    for record in repeats:
        first = records[record.evaluation.same_as or 0]
        assert all(map(torch.equal, masks(record), masks(first)))
        assert record.canonical == first.canonical
    judged = [record for record in records if record.evaluation.counts]
    assert len({record.evaluation.value for record in judged}) > 4


def least_error(matrix: SampledMatrix, mask: Tensor) -> tuple[float, float]:
    """Row by row by NumPy's solver: the errors weighed by sensitivity, and their plain sum."""
    gram = matrix.gram.double().numpy()
    # Least squares are shrunk for few tokens: 4 windows of 16.
    shrinkage = 2 * len(gram) / (4 * 16)
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


def test_the_closed_form_is_the_error_that_least_squares_leave(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sampled at 8 rows a matrix, all of which are solved for.
    monkeypatch.setattr("pruner_zero.evolution.build._SAMPLED_WEIGHTS", 1)
    evaluator = build("llama", structure="channels")
    sample = evaluator.sample
    masks = sampled_masks(sample, parse(METRIC), "unit", evaluator.masked.pattern)
    total = 0.0
    for matrix, mask in zip(sample, masks, strict=True):
        felt, lost = least_error(matrix, mask)
        total += float(matrix.scale) * felt / (1 - lost / float(matrix.norms.sum())) ** 8
    assert closed_form_error(sample, masks) == pytest.approx(math.log(total), abs=0.02)
    without = [replace(matrix, layer=None) for matrix in sample]
    assert closed_form_error(without, masks) > math.log(total) + 0.1


def test_sixteen_rows_stand_for_all_sampled_rows(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.evolution.build._SAMPLED_WEIGHTS", 1)
    some = build("llama", structure="channels")
    monkeypatch.setattr("pruner_zero.evolution.build._SAMPLED_WEIGHTS", 10**9)
    more = build("llama", structure="channels")
    assert {len(matrix.weight) for matrix in more.sample} == {32}
    errors = [
        evaluator.run(Task(0, "reconstruction", "W * X", "unit")).value
        for evaluator in (some, more)
    ]
    assert errors[0] == pytest.approx(errors[1], abs=0.5)
    assert errors[0] != errors[1]


@pytest.mark.slow
def test_interruptions_and_workers_change_nothing(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    units: dict[str, Any] = {"structure": "channels"}
    run(llama_folder, tmp_path / "whole", text_file, **units)
    same_however_it_ran(llama_folder, text_file, tmp_path / "whole", tmp_path, **units)


def test_a_number_of_parameters_in_place_of_a_share(build: Build) -> None:
    dense = tiny_model("llama").num_parameters()
    units: dict[str, Any] = {"structure": "channels", "sparsity": None}
    masks = list(build("llama", parameters="0.95", **units).masked.masks(parse(METRIC), "unit"))
    # A channel is a column of down_proj, a row of gate_proj and one of up_proj.
    removed = sum(3 * len(mask) * int((~mask[0]).sum()) for mask in masks)
    assert dense * 0.85 < dense - removed <= dense * 0.95


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"structure": "blocks"}, "channels.*heads"),
        ({"structure": "experts"}, "channels.*heads"),
        ({"structure": "channels", "scope": "row"}, "leave out --scope"),
        ({"structure": "channels", "pattern": "2:4"}, "leave out --pattern"),
        ({"structure": "channels", "parameters": "0.9"}, "either --sparsity"),
        ({"parameters": "0.9"}, "add --structure"),
        ({"final_windows": 1}, "one window has no interval: choose 2 or more, or 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises((PrunerZeroError, ValueError), match=message):
        tiny_settings(**changed)


def test_a_family_without_such_units_is_refused_before_the_search(
    text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunerZeroError, match="cannot remove any of the gpt2 family"):
        search(
            save_tiny(tmp_path / "gpt2", "gpt2"),
            calibration=text_file,
            output=tmp_path / "run",
            **{**TINY, "structure": "channels", "evaluations": 5},
        )
