"""Metrics of whole units are judged on the model of `prune --structure`, and `prune` obeys."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate
from pruner_zero.evolution.racing import Racing, judge
from pruner_zero.evolution.record import Archive, Record
from pruner_zero.evolution.row_sample import sampled_masks
from pruner_zero.evolution.run import search
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import random_expression
from pruner_zero.execution.executor import SerialExecutor
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.prune import prune
from tests.conftest import save_tiny
from tests.evolution.conftest import Build, tiny_settings
from tests.evolution.test_run import TINY, run, same_however_it_ran
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

METRIC = "W * X * G^0.5"


@pytest.mark.parametrize("update", ["none", "exact"])
@pytest.mark.parametrize(
    ("architecture", "structure"),
    [("llama", "channels"), ("llama", "heads"), ("gemma3", "channels"), ("qwen3", "heads")],
)
def test_the_judged_model_computes_the_same_as_the_smaller_model(
    build: Build, prose: str, tmp_path: Path, architecture: str, structure: str, update: str
) -> None:
    units: dict[str, Any] = {"structure": structure, "update": update}
    masked = build(architecture, **units).masked
    whole: Any = masked.model
    smaller: Any = tiny_model(architecture)
    result = prune(
        smaller,
        METRIC,
        tokenizer=tiny_tokenizer(),
        calibration=[prose[: len(prose) // 2]],
        sparsity=0.5,
        mode="one-shot",
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
        **units,
    )
    assert result.language_model.model.num_parameters() < whole.num_parameters()
    # The search inverts the removed part, `prune` factorises the kept part, in fp32.
    near = 1e-5 if update == "none" else 2e-4
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
    assert study.settings["update"] == "exact"
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


def test_only_candidates_with_the_same_masks_are_repeats(build: Build, tmp_path: Path) -> None:
    """A unit's score sums over all rows, of which no sample tells whether two masks are equal."""
    evaluator = build("llama", structure="heads", sampled_weights=10**9)
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
