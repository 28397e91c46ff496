"""Language models and windows for the tests of this folder, small enough to prune by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from pruner_zero.calibration.calibrate import StatisticsStore, open_store
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.pruning.runner import Pruned, run_recipe
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import Windows, random_windows
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

OpenStore = Callable[[LanguageModel], StatisticsStore]


class Prune(Protocol):
    """Prunes a model by a recipe, or by the text and the options of one, on some windows."""

    def __call__(
        self,
        model: LanguageModel,
        recipe: str | Recipe,
        /,
        *,
        on: Windows | None = None,
        matrices: Sequence[Matrix] | None = None,
        **options: Any,
    ) -> Pruned: ...


def recipe_of(text: str, /, *, dense_inputs: bool = False, **options: Any) -> Recipe:
    """The recipe of a text, at 50 % where no option says how much."""
    if "pattern" not in options:
        options.setdefault("sparsity", 0.5)
    return replace(parse_recipe(text, **options), dense_inputs=dense_inputs)


def scored_of(text: str, **options: Any) -> Scored:
    """The metric and the pattern of a text, at 50 % where no option says how much."""
    masks = recipe_of(text, **options).masks
    assert isinstance(masks, Scored)
    return masks


def language_model(architecture: str, seed: int = 0, blocks: int = 2) -> LanguageModel:
    """A tiny random model with its tokenizer."""
    return LanguageModel(tiny_model(architecture, seed, blocks), tiny_tokenizer(), architecture)


@pytest.fixture(scope="session")
def windows(prose: str) -> Windows:
    """Four windows of 24 tokens."""
    return random_windows(Corpus("prose", prose), tiny_tokenizer(), 4, 24, seed=0)


@pytest.fixture
def new_store(windows: Windows, tmp_path: Path) -> OpenStore:
    """The statistics of a model on those windows, kept for this test alone."""
    return lambda model: open_store(model, windows, folder=tmp_path / "statistics")


@pytest.fixture
def pruned_by(windows: Windows, new_store: OpenStore) -> Prune:
    """Prunes on those windows, or on others, with statistics that are kept for this test alone."""

    def prune(
        model: LanguageModel,
        recipe: str | Recipe,
        /,
        *,
        on: Windows | None = None,
        matrices: Sequence[Matrix] | None = None,
        **options: Any,
    ) -> Pruned:
        if isinstance(recipe, str):
            recipe = recipe_of(recipe, **options).fitted(model)
        return run_recipe(model, on or windows, recipe, new_store(model), matrices=matrices)

    return prune
