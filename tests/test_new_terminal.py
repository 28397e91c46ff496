"""A new terminal is an entry of TERMINALS and an entry of STATISTICS: metrics can use it then."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero import prune
from pruner_zero.calibration.statistics import STATISTICS, InputStatistic
from pruner_zero.metric.expression import TERMINALS, Statistic
from pruner_zero.metric.operators import Shape
from pruner_zero.models.matrices import find_matrices
from pruner_zero.sparsity.selection import Unstructured
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import random_windows
from tests.calibration.reference import plain_inputs
from tests.calibration.test_statistics import NEW
from tests.masks import keep_mask
from tests.pruning.conftest import language_model
from tests.tiny import tiny_tokenizer

DEVIATION = NEW["deviation"]


@pytest.fixture(autouse=True)
def deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal V: the standard deviation of each input channel over all tokens."""
    assert isinstance(DEVIATION, InputStatistic)
    terminal = Statistic(Shape.ROW, "deviation of each input channel", cost=1, collected="V")
    new = {"TERMINALS": {**TERMINALS, "V": terminal}, "STATISTICS": {**STATISTICS, "V": DEVIATION}}
    modules = [module for name, module in sys.modules.items() if name.startswith("pruner_zero")]
    for name, table in new.items():
        for module in modules:
            if name in vars(module):
                monkeypatch.setattr(module, name, table)


def test_a_metric_prunes_by_a_new_terminal(prose: str, tmp_path: Path) -> None:
    model, dense = language_model("llama"), language_model("llama")
    options: dict[str, Any] = {"sparsity": 0.5, "windows": 3, "seqlen": 24, "cache": tmp_path}
    prune(model, "W * V", calibration=[prose], **options)
    windows = random_windows(Corpus("prose", prose), tiny_tokenizer(), 3, 24, 0)
    inputs = plain_inputs(dense.model, windows.tokens)
    for matrix, before in zip(find_matrices(model.model), find_matrices(dense.model), strict=True):
        deviations = torch.cat(inputs.rows[matrix.name]).std(0, correction=0).float()
        mask = keep_mask(before.weight.abs() * deviations, Unstructured(0.5, "row"), matrix.name)
        # Sums that round differently may exchange two weights that nearly tie.
        assert ((matrix.weight != 0) == mask).float().mean() > 0.99


def test_it_is_collected_block_by_block_beside_other_statistics(prose: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "windows": 3, "seqlen": 24, "cache": tmp_path}
    result = prune(language_model("llama"), "W * V + G * X+obs", calibration=[prose], **options)
    assert result.mode == "sequential"
    assert result.sparsity == 0.5
