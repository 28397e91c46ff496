"""A new pattern needs no change of other files: `prune` and the search take it as it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.row_sample import sampled_masks
from pruner_zero.metric.grammar import parse
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.models.saving import save_model
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.sparsity.pattern import Pattern, Reach
from tests.evolution.conftest import Build
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


def columns_of(total: Tensor, shape: torch.Size, sparsity: float) -> Tensor:
    """The mask that drops the input columns with the lowest `total` (in)."""
    dropped = total.argsort(stable=True)[: int(sparsity * len(total))]
    kept = torch.ones(shape[1], dtype=torch.bool)
    kept[dropped] = False
    return kept.expand(shape)


@dataclass(frozen=True)
class Columns(Pattern):
    """Whole input columns of each matrix, the same share of each."""

    sparsity: float

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {
            name: columns_of(values.sum(0), values.shape, self.sparsity)
            for name, values in scores.items()
        }


@dataclass(frozen=True)
class SharedColumns(Pattern):
    """The same input columns of all matrices of a block that have the same width."""

    sparsity: float
    reach: Reach = "block"

    def check(self, name: str, shape: tuple[int, int]) -> None:
        if shape[1] % 2:
            raise PrunerZeroError(f"{name} has an odd width: exclude it")

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        totals: dict[int, Tensor] = {}
        for values in scores.values():
            width = values.shape[1]
            totals[width] = totals.get(width, torch.zeros(width)) + values.sum(0)
        return {
            name: columns_of(totals[values.shape[1]], values.shape, self.sparsity)
            for name, values in scores.items()
        }


@dataclass(frozen=True)
class SweptPairs(SharedColumns):
    """Keeps one weight of each pair in a sweep; otherwise it is like `SharedColumns`."""

    @property
    def sweep_columns(self) -> int:
        return 2

    def choose_columns(self, scores: Tensor, start: int) -> Tensor:
        left, right = scores[:, ::2], scores[:, 1::2]
        return torch.stack([left >= right, left < right], 2).flatten(1)


class Odd(SharedColumns):
    """Takes every width for an odd width."""

    def check(self, name: str, shape: tuple[int, int]) -> None:
        super().check(name, (shape[0], 1))


@dataclass(frozen=True)
class WholeMatrices(Pattern):
    """The matrices of the model with the lowest mean score, half of them."""

    sparsity: float = 0.5
    reach: Reach = "model"

    def choose(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        means = {name: float(values.mean()) for name, values in scores.items()}
        ranked = sorted(means, key=means.__getitem__)
        kept = set(ranked[len(ranked) // 2 :])
        return {name: torch.full_like(scores[name], name in kept).bool() for name in scores}


PATTERNS: list[Pattern] = [Columns(0.5), SharedColumns(0.5), WholeMatrices()]


def expected(pattern: Pattern) -> dict[str, Tensor]:
    """The masks of magnitude by a loop written for these patterns alone."""
    model = tiny_model("llama")
    scores = {matrix.name: matrix.weight.abs() for matrix in find_matrices(model)}
    if pattern.reach == "model":
        return dict(pattern.choose(scores))
    masks: dict[str, Tensor] = {}
    for block in range(2):
        inside = {name: values for name, values in scores.items() if f"layers.{block}." in name}
        masks |= pattern.choose(inside)
    return masks


def pruned(pattern: Any, prose: str, tmp_path: Path, **settings: Any) -> PruneResult:
    options = {"windows": 3, "seqlen": 16, "cache": tmp_path / "cache", **settings}
    model: Any = tiny_model("llama")
    if settings.get("offload"):
        save_model(LanguageModel(model, tiny_tokenizer(), "tiny"), tmp_path / "dense", "30KB")
        model = tmp_path / "dense"
    tokenizer = None if settings.get("offload") else tiny_tokenizer()
    return prune(model, calibration=[prose], tokenizer=tokenizer, pattern=pattern, **options)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_prune_takes_the_pattern(pattern: Pattern, prose: str, tmp_path: Path) -> None:
    result = pruned(pattern, prose, tmp_path, metric="magnitude")
    masks = expected(pattern)
    for matrix in find_matrices(result.language_model.model):
        assert torch.equal(matrix.weight != 0, masks[matrix.name]), matrix.name
    assert result.sparsity == pytest.approx(0.5, abs=0.1)
    assert result.to_json()["pattern"] == str(pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("metric", ["gblm", "wanda+obs"])
def test_the_pattern_gives_the_same_on_an_offloaded_model(
    pattern: Pattern, metric: str, prose: str, tmp_path: Path
) -> None:
    whole = pruned(pattern, prose, tmp_path, metric=metric, output=tmp_path / "whole")
    apart = pruned(pattern, prose, tmp_path, metric=metric, output=tmp_path / "apart", offload=True)
    assert list(apart.records) == list(whole.records)
    whole_state, offloaded_state = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("whole", "apart")
    )
    assert whole_state.keys() == offloaded_state.keys()
    assert all(torch.equal(whole_state[name], offloaded_state[name]) for name in whole_state)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_search_takes_the_pattern(pattern: Pattern, build: Build) -> None:
    evaluator = build()
    masked = replace(evaluator.masked, pattern=pattern)
    masks = expected(pattern)
    with masked.masked(parse("W"), "row"):
        for matrix in masked.matrices:
            assert torch.equal(matrix.weight != 0, masks[matrix.name]), matrix.name
    sampled = sampled_masks(evaluator.sample, parse("W"), "row", pattern)
    assert [mask.shape for mask in sampled] == [matrix.weight.shape for matrix in evaluator.sample]


def test_columns_are_shared_by_the_matrices_of_a_block_and_by_no_others() -> None:
    masks = expected(SharedColumns(0.5))
    gate, up, q = (
        [masks[f"model.layers.{block}.{name}_proj"][0] for block in (0, 1)]
        for name in ("mlp.gate", "mlp.up", "self_attn.q")
    )
    assert torch.equal(gate[0], up[0])
    assert torch.equal(gate[0], q[0])
    assert not torch.equal(gate[0], gate[1])


@pytest.mark.parametrize(
    ("pattern", "method", "line"),
    [
        (Columns(0.5), "wanda@global", "leave out scope 'global'"),
        (Odd(0.5), "wanda", "has an odd width: exclude it"),
    ],
)
def test_methods_that_do_not_fit_the_pattern_are_refused_before_any_work(
    pattern: Pattern, method: str, line: str, prose: str, tmp_path: Path
) -> None:
    with pytest.raises(PrunerZeroError, match=line):
        pruned(pattern, prose, tmp_path, metric=method)


def test_a_sweep_chooses_the_zeros_of_every_matrix_of_a_block(prose: str, tmp_path: Path) -> None:
    result = pruned(SweptPairs(0.5), prose, tmp_path, metric="sparsegpt")
    for matrix in find_matrices(result.language_model.model):
        pairs = (matrix.weight == 0).reshape(len(matrix.weight), -1, 2)
        assert (pairs.sum(-1) == 1).all(), matrix.name
