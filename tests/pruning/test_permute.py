"""Blocks are brought into an order that N:M masks keep more of, and compute what they computed."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pruner_zero import PrunerZeroError, compare, prune
from pruner_zero.calibration.walk import Walk
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.permute import (
    column_order,
    find_movable,
    kept_by,
    permute_block,
    singular_axes,
)
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import OpenStore, Prune, language_model, recipe_of
from tests.tiny import Notes
from tests.tiny_models import tiny_windows

PATTERN = SemiStructured(2, 4)
MOVABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")


def random_scores(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loud = torch.rand(columns, generator=generator) ** 3
    return torch.rand(rows, columns, generator=generator) * loud


def kept_plainly(scores: Tensor, order: Tensor, zeros: int, size: int) -> float:
    total = 0.0
    for row in scores[:, order].tolist():
        for first in range(0, len(row), size):
            total += sum(sorted(row[first : first + size])[zeros:])
    return total


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 6),
    pattern=st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (4, 8)]),
    seed=st.integers(0, 2**16),
)
def test_an_order_has_every_column_once_and_keeps_no_less(
    rows: int, groups: int, pattern: tuple[int, int], seed: int
) -> None:
    zeros, size = pattern
    scores = random_scores(rows, groups * size, seed)
    order = column_order(scores, zeros, size)
    assert sorted(order.tolist()) == list(range(groups * size))
    as_it_was, kept = (
        kept_plainly(scores, each, zeros, size) for each in (torch.arange(groups * size), order)
    )
    assert kept >= as_it_was - 1e-5
    assert kept_by(scores[:, order], zeros, size) == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_two_groups_come_close_to_the_best_of_all_divisions(seed: int) -> None:
    scores = random_scores(6, 8, seed)
    everything = set(range(8))
    divisions = [
        torch.tensor([*half, *(everything - {*half})]) for half in combinations(range(8), 4)
    ]
    best = max(kept_plainly(scores, division, 2, 4) for division in divisions)
    assert kept_plainly(scores, column_order(scores, 2, 4), 2, 4) >= 0.95 * best


def test_loud_columns_that_stand_together_are_dealt_out() -> None:
    scores = torch.full((3, 600 * 4), 0.1)
    scores[:, :1200] = 1.0
    # More groups than exchange columns with each other.
    assert kept_by(scores[:, column_order(scores, 2, 4)], 2, 4) == pytest.approx(3 * 1200)


@given(size=st.integers(1, 8), rank=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_axes_make_both_forms_diagonal_and_equal(size: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20, min(rank, size), generator=generator, dtype=torch.float64)
    mixing = torch.randn(min(rank, size), size, generator=generator, dtype=torch.float64)
    output = torch.randn(5, size, generator=generator, dtype=torch.float64)
    inputs = (values @ mixing).T @ (values @ mixing)
    axes, inverse = singular_axes(inputs, output.T @ output)
    assert torch.allclose(axes @ inverse, torch.eye(size, dtype=torch.float64), atol=1e-6)
    turned = inverse @ inputs @ inverse.T
    squares = axes.T @ output.T @ output @ axes
    largest = float(squares.max())
    for form in (turned, squares):
        assert torch.allclose(form, form.diag().diag(), atol=1e-3 * largest)
    assert torch.allclose(turned.diag(), squares.diag(), atol=1e-3 * largest)


@dataclass(frozen=True)
class Permuted:
    """A model with one block after the other permuted, by squares of weights."""

    model: LanguageModel
    before: dict[str, Tensor]
    scores: dict[str, float]


@torch.no_grad()
def permuted(model: LanguageModel) -> Permuted:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    by_name = {matrix.name: matrix for matrix in find_matrices(model.model)}
    movable = find_movable(model.model, list(by_name.values()))
    walk = Walk(model, tiny_windows())
    stream = walk.carry()
    kept = {}
    for index, block in walk.blocks("permuting"):
        permute_block(
            *(model.model, movable.get(index, ()), block, stream, PATTERN, by_name),
            lambda matrix: matrix.weight.abs(),
        )
        for coupling in movable.get(index, ()):
            kept[coupling.consumer] = kept_by(by_name[coupling.consumer].weight ** 2, 2, 4)
        stream.advance(block, index)
    return Permuted(model, before, kept)


@pytest.mark.parametrize("architecture", MOVABLE)
def test_a_permuted_model_predicts_the_same_and_its_masks_keep_more(architecture: str) -> None:
    dense, model = language_model(architecture), language_model(architecture)
    result = permuted(model)
    tokens = tiny_windows(seed=5)
    with torch.no_grad():
        expected, logits = (each.model(tokens).logits for each in (dense, model))
    assert torch.allclose(logits, expected, atol=2e-4 * float(expected.abs().max()))
    consumers = {name.rsplit(".", 1)[-1] for name in result.scores}
    assert consumers == {"o_proj", "down_proj"}
    for name, kept in result.scores.items():
        if name.endswith("down_proj"):
            weight = result.before[f"{name}.weight"]
            assert kept > kept_by(weight**2, 2, 4)
    changed = {n for n, t in model.model.state_dict().items() if not t.equal(result.before[n])}
    assert all(any(part in name for part in ("v_proj", "o_proj", "mlp")) for name in changed)
    assert any("v_proj" in name for name in changed)


def test_values_that_a_norm_follows_stay_as_they_were() -> None:
    model = language_model("llama")

    def normalised(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return functional.normalize(output, dim=-1)

    for name, module in model.model.named_modules():
        if name.endswith("v_proj"):
            module.register_forward_hook(normalised)
    notes = Notes()
    with reported_to(notes):
        result = permuted(model)
    state = model.model.state_dict()
    for name, before in result.before.items():
        assert state[name].equal(before) == ("mlp" not in name), name
    assert [line for line in notes.lines if "stay as they were" in line] == [
        f"heads of block {block} stay as they were: their order shows in its outputs"
        for block in range(2)
    ]


@pytest.mark.parametrize(("architecture", "kept"), [("gpt2", 2), ("mixtral", 1), ("phi3", 2)])
def test_families_without_such_units_are_pruned_without(
    architecture: str, kept: int, pruned_by: Prune
) -> None:
    model, plain, notes = language_model(architecture), language_model(architecture), Notes()
    with reported_to(notes):
        pruned_by(model, "wanda+permute", pattern="2:4")
    said = [line for line in notes.lines if "keep their order" in line]
    assert len(said) == kept
    pruned_by(plain, "wanda", pattern="2:4")
    assert (model.fingerprint() == plain.fingerprint()) == (kept == 2)


class StoppedError(Exception):
    """Ends a run after a block."""


def test_a_run_that_goes_on_has_the_biases_of_finished_blocks(
    windows: Windows, new_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("wanda+permute", pattern="2:4")
    whole, stopped, resumed = (language_model("qwen2", blocks=3) for _ in range(3))
    run_recipe(whole, windows, recipe, new_store(whole))

    append = Journal.append

    def append_once(self: Journal, *arguments: Any) -> None:
        append(self, *arguments)
        if self.finished == 2:
            raise StoppedError

    journal = Journal(tmp_path / "blocks", {})
    monkeypatch.setattr(Journal, "append", append_once)
    with pytest.raises(StoppedError):
        run_recipe(stopped, windows, recipe, new_store(stopped), journal=journal)
    monkeypatch.undo()
    assert journal.finished == 2
    run_recipe(resumed, windows, recipe, new_store(resumed), journal=journal)
    assert resumed.fingerprint() == whole.fingerprint()


def test_the_next_row_of_a_comparison_begins_with_the_dense_biases(text_file: Path) -> None:
    model = language_model("qwen2")
    options: dict[str, Any] = {"windows": 3, "seqlen": 24, "windows_eval": 2, "seqlen_eval": 24}
    texts: dict[str, Any] = {"calibration": text_file, "text": text_file}
    methods = ["wanda+permute", "wanda", "dense"]
    rows = compare(model, methods, pattern="2:4", **texts, **options).rows
    alone = compare(language_model("qwen2"), methods[1:], pattern="2:4", **texts, **options).rows
    assert [row["loss"] for row in rows[1:]] == [row["loss"] for row in alone]
    assert rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("wanda+permute", {"sparsity": 0.5}),
        ("wanda+permute", {"pattern": "2:4", "mode": "one-shot"}),
        ("W * G+permute", {"pattern": "2:4"}),
    ],
)
def test_what_cannot_be_permuted_is_refused(
    metric: str, options: dict[str, Any], text_file: Path
) -> None:
    with pytest.raises(PrunerZeroError, match=r"needs --pattern N:M, --mode sequential and a"):
        prune(language_model("llama"), metric, calibration=text_file, **options)


def test_scores_that_are_not_finite_name_the_matrix(pruned_by: Prune) -> None:
    model = language_model("llama")
    with pytest.raises(PrunerZeroError, match=r"o_proj"):
        pruned_by(model, "W / (W - W)+permute", pattern="2:4")


@pytest.mark.parametrize("metric", ["neg(W)", "W * 1e30"])
def test_negative_and_huge_scores_can_be_permuted(metric: str, pruned_by: Prune) -> None:
    model = language_model("llama")
    pruned_by(model, f"{metric}+permute", pattern="2:4")
    for matrix in find_matrices(model.model):
        assert ((matrix.weight == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_whole_units_leave_nothing_to_permute() -> None:
    with pytest.raises(PrunerZeroError, match=r"after which \+permute has nothing to do"):
        parse_recipe("wanda@channels=0.25+permute")
