"""Language models and windows for the tests of this folder, small enough to prune by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pruner_zero.calibration.calibrate import open_store
from pruner_zero.calibration.store import StatisticsStore
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.windows import Windows, random_windows
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

OpenStore = Callable[[LanguageModel], StatisticsStore]


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
