"""The race of masks: the judged masks are those of each method, and the best one is taken."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruner_zero import prune
from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.models.block_calls import Activations, run_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.pruning.masks import DenseStatistics, dense_masks, masks_of
from pruner_zero.pruning.race import held_out, race
from pruner_zero.pruning.recipe import Race, Recipe
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.text.token_windows import Windows, no_windows
from tests.pruning.conftest import OpenStore, Prune, language_model, scored_of
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import SHARING, tiny_model

METHODS = ("wanda", "wanda@global", "magnitude", "W * (O * X)^0.73@global")


@torch.no_grad()
def divergence(model: nn.Module, dense: nn.Module, tokens: torch.Tensor) -> float:
    """KL by whole forward passes, window by window."""
    values = []
    for window in tokens.split(1):
        wanted = dense(window).logits[0, :-1].log_softmax(-1)
        predicted = model(window).logits[0, :-1].log_softmax(-1)
        values.append(
            float(functional.kl_div(predicted, wanted, log_target=True, reduction="batchmean"))
        )
    return sum(values) / len(values)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", SHARING])
def test_divergences_are_those_of_models_pruned_one_shot(
    architecture: str, windows: Windows, new_store: OpenStore, pruned_by: Prune
) -> None:
    raced, dense = (language_model(architecture, blocks=4) for _ in range(2))
    store = new_store(raced)
    masks = Race(tuple(map(scored_of, METHODS)))
    calibrate(raced, windows, Recipe("race", masks).kinds(), store)
    statistics = DenseStatistics(store)
    matrices = find_matrices(raced.model)
    made = [dense_masks(raced, each, matrices, statistics) for each in masks.entries]
    entries = race(raced, windows.tokens, masks.entries, matrices, made)
    for method, entry in zip(METHODS, entries, strict=True):
        pruned = language_model(architecture, blocks=4)
        pruned_by(pruned, method)
        wanted = divergence(pruned.model, dense.model, windows.tokens)
        assert entry.divergence == pytest.approx(wanted, rel=1e-3)
    assert raced.fingerprint() == dense.fingerprint()


def test_masks_of_matrices_that_compete_with_no_other_are_computed_when_needed(
    windows: Windows, new_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores at once would take more memory than the model."""
    raced = language_model("llama")
    store = new_store(raced)
    calibrate(raced, windows, ["X"], store)
    events: list[str] = []

    def masks_of_some(matrices: Sequence[Matrix], *args: Any, **options: Any) -> Any:
        events.extend(matrix.name for matrix in matrices)
        return masks_of(matrices, *args, **options)

    def run(*args: Any, **options: Any) -> Activations:
        events.append("run")
        return run_windows(*args, **options)

    monkeypatch.setattr("pruner_zero.pruning.masks.masks_of", masks_of_some)
    monkeypatch.setattr("pruner_zero.calibration.walk.run_windows", run)
    matrices = find_matrices(raced.model)
    wanda, statistics = scored_of("wanda"), DenseStatistics(store)
    made = dense_masks(raced, wanda, matrices, statistics)
    race(raced, windows.tokens, [wanda], matrices, [made])
    wanted: list[str] = []
    for index in range(1 + max(matrix.block for matrix in matrices)):
        wanted += [m.name for m in matrices if m.block == index] + ["run", "run"]
    assert events == wanted


def test_prune_takes_the_best_mask_and_says_so(tmp_path: Path) -> None:
    progress = Notes()
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")
    with reported_to(progress):
        result = prune(
            model, cache=tmp_path, sparsity=0.5, windows=4, seqlen=16, reconstruct=1, distill=2
        )
    (note,) = [line for line in progress.lines if "masks alone" in line]
    assert note.count("W * X (50% per row)") == 1
    divergences = [entry.divergence for entry in result.raced]
    assert len(divergences) == 3
    assert divergences == sorted(divergences)
    best = result.raced[0]
    assert (best.metric, best.pattern) == (
        str(result.metric.expression),
        str(result.recipe.pattern),
    )
    assert result.to_json()["race"][0]["metric"] == best.metric


@pytest.mark.parametrize(
    ("count", "seen", "judged"), [(96, 90, 6), (4, 3, 1), (2, 1, 1), (1, 1, 1)]
)
def test_masks_are_judged_on_windows_that_their_statistics_have_not_seen(
    count: int, seen: int, judged: int
) -> None:
    windows = replace(no_windows(), tokens=torch.arange(3 * count).view(count, 3))
    first, last = held_out(windows, windows)
    assert torch.equal(first.tokens, windows.tokens[:seen])
    assert torch.equal(last, windows.tokens[-judged:])


def test_what_the_judged_windows_hold_changes_no_mask(
    windows: Windows, new_store: OpenStore
) -> None:
    """Masks of two calibrations that differ in the judged window alone."""
    other = replace(windows, tokens=windows.tokens.clone())
    other.tokens[-1] = other.tokens[-1].flip(0)
    recipe = Recipe("race", Race((scored_of("W * (O * X)^0.73@global"),) * 2))
    kept = []
    for each in (windows, other):
        model = language_model("llama")
        run_recipe(model, each, recipe, open_store(model, each, folder=new_store(model).folder))
        kept.append({m.name: m.weight != 0 for m in find_matrices(model.model)})
    assert all(torch.equal(mask, kept[1][name]) for name, mask in kept[0].items())
