"""Only what a metric needs is computed, once, and nothing before the plan is known to fit."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from pruner_zero.calibration.calibrate import calibrate
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import BlockCalls
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.progress import Progress, reported_to
from pruner_zero.structure.blocks import fold_blocks
from pruner_zero.text.token_windows import Windows
from tests.pruning.conftest import OpenStore, Prune, language_model
from tests.pruning.test_runner import assert_equal_models

T = TypeVar("T")
NOTHING = {"forward": 0, "backward": 0, "blocks": 0}


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """How often the model runs, with and without gradients, and how often each of its blocks."""
    counts = {"forward": 0, "backward": 0, "blocks": 0}

    def run(_module: nn.Module, _inputs: object) -> None:
        counts["backward" if torch.is_grad_enabled() else "forward"] += 1

    def block(_module: nn.Module, _inputs: object) -> None:
        counts["blocks"] += 1

    handles = [model.register_forward_pre_hook(run)]
    handles += [module.register_forward_pre_hook(block) for module in find_blocks(model)]
    yield counts
    for handle in handles:
        handle.remove()


def test_a_metric_of_gradients_alone_runs_nothing_for_activations(
    windows: Windows, pruned_by: Prune
) -> None:
    ours = language_model("llama")
    with counted(ours.model) as counts:
        pruned_by(ours, "pruner-zero")
    assert counts == {"forward": 0, "backward": len(windows), "blocks": 2 * len(windows)}


def test_magnitude_runs_nothing_at_all(pruned_by: Prune) -> None:
    ours = language_model("llama")
    with counted(ours.model) as counts:
        pruned_by(ours, "magnitude")
    assert counts == NOTHING


@pytest.mark.parametrize(
    "method", ["wanda", "pruner-zero", "ria@global", "sparsegpt-score", "sparsegpt"]
)
def test_the_next_metric_reuses_the_dense_statistics(method: str, pruned_by: Prune) -> None:
    first, second = language_model("llama"), language_model("llama")
    pruned_by(first, "gblm+obs", dense_inputs=True)
    with counted(second.model) as counts:
        pruned_by(second, method, dense_inputs=True)
    assert counts == NOTHING


def test_sequential_takes_gradients_from_the_dense_statistics(pruned_by: Prune) -> None:
    first, second = language_model("llama"), language_model("llama")
    pruned_by(first, "gblm+obs")
    with counted(second.model) as counts:
        pruned_by(second, "gblm+obs")
    assert counts["backward"] == 0
    assert_equal_models(first.model, second.model)


def test_a_width_that_m_does_not_divide_is_refused_before_any_work(pruned_by: Prune) -> None:
    ours = language_model("llama")
    dense = ours.fingerprint()
    with counted(ours.model) as counts, pytest.raises(PrunerZeroError, match=r"layers\.0\..*5"):
        pruned_by(ours, "gblm", pattern="2:5")
    assert counts == NOTHING
    assert ours.fingerprint() == dense


@pytest.mark.parametrize(
    ("include", "runs"), [((), 4 + 3), (("*.0.*",), 1), (("*.1.*",), 2)], ids=str
)
def test_no_block_is_run_whose_outputs_no_matrix_needs(
    include: tuple[str, ...], runs: int, windows: Windows, pruned_by: Prune
) -> None:
    ours = language_model("llama", blocks=4)
    matrices = find_matrices(ours.model, include)
    with counted(ours.model) as counts:
        pruned_by(ours, "wanda+obs", matrices=matrices)
    # Recording the arguments of the blocks calls each of them once; before that, three passes over
    # the first tokens of one window check that the blocks can be run one after the other.
    assert counts["blocks"] == (4 + runs) * len(windows) + 3 * 4


class FirstInputs(Progress):
    """How many inputs of the first block are in memory when each block is begun, by label."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[weakref.ref[Tensor]] = []
        self.counts: dict[str, list[int]] = {}
        record = LanguageModel.block_calls

        def noted(model: LanguageModel, tokens: Tensor, *rest: Any) -> BlockCalls:
            calls = record(model, tokens, *rest)
            self.inputs += [weakref.ref(tensor) for tensor in calls.hidden]
            return calls

        monkeypatch.setattr(LanguageModel, "block_calls", noted)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        for item in items:
            alive = sum(tensor() is not None for tensor in self.inputs)
            self.counts.setdefault(label, []).append(alive)
            yield item


@pytest.mark.parametrize("label", ["activations", "folding"])
def test_the_inputs_of_the_first_block_are_freed_after_it(
    label: str, windows: Windows, new_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, progress = language_model("llama", blocks=5), FirstInputs(monkeypatch)
    with reported_to(progress):
        match label:
            case "activations":
                calibrate(ours, windows, ["X"], new_store(ours))
            case "folding":
                fold_blocks(ours, windows.tokens, [3])
    first, *_, last = progress.counts[label]
    assert (first, last) == (len(windows), 0)
