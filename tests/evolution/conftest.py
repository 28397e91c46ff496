"""A tiny model that is ready for a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.evolution.build import JudgedModel
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.mixture import load_mixture
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

Build = Callable[..., Evaluator]


def tiny_settings(**changed: Any) -> SearchSettings:
    """Settings of a search that takes seconds on a tiny model."""
    defaults: dict[str, Any] = {
        "model": "tiny",
        "calibration": "words",
        "search_text": "words",
        "sparsity": 0.5,
        "windows": 4,
        "seqlen": 16,
        "search_windows": 3,
        "final_windows": 0,
        "evaluations": 40,
    }
    return SearchSettings(**{**defaults, **changed})


@pytest.fixture
def build(prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds the evaluator of a tiny model for changed settings; fast: in bfloat16."""

    def make(architecture: str = "llama", fast: bool = False, **changed: Any) -> Evaluator:
        monkeypatch.setattr("pruner_zero.evolution.build.has_fast_bfloat16", lambda device: fast)
        settings = tiny_settings(**changed)
        language_model = LanguageModel(tiny_model(architecture), tiny_tokenizer(), "tiny")
        corpus = load_mixture([prose])
        return JudgedModel.of(language_model, settings, corpus, corpus, tmp_path).evaluator(
            settings
        )

    torch.set_num_threads(1)
    return make
