"""Distillation after pruning: nearer to the dense model, the same zeros, and the same bytes."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import JOURNAL
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices, size_of
from pruner_zero.progress import Progress, reported_to
from pruner_zero.recovery.distillation import check_memory, distillation
from pruner_zero.recovery.train import Training
from pruner_zero.text.windows import Windows
from tests.recovery.conftest import prune_half, pruned_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.recovery.distillation.TOKENS", 32)


def some_windows(count: int = 8) -> Windows:
    return Windows(tiny_windows(count, 16), "self", None, "as written", None, "sampled", 0)


def dense() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")


def train(steps: int, windows: Windows | None = None, dtype: Any = None, **options: Any) -> Any:
    """The dense model, pruned and trained; the zeros that it was given; the learning curve."""
    model = dense()
    model.model.to(dtype)
    trained = distillation(model, windows or some_windows(), steps, **options)
    zeros = prune_half(model.model)
    return model, zeros, trained(find_matrices(model.model))


def divergence(pruned: LanguageModel, windows: Windows) -> float:
    with torch.no_grad():
        wanted = dense().model(windows.tokens).logits.log_softmax(-1)
        predicted = pruned.model(windows.tokens).logits.log_softmax(-1)
    return float(functional.kl_div(predicted, wanted, log_target=True, reduction="batchmean"))


def test_the_pruned_model_comes_nearer_to_the_dense_one_and_keeps_its_zeros() -> None:
    windows = some_windows()
    before = divergence(pruned_model()[0], windows)
    pruned, zeros, curve = train(80, windows)
    assert curve[-1].step == 80
    assert divergence(pruned, windows) < 0.9 * before
    for name, parameter in pruned.model.named_parameters():
        if name in zeros:
            assert torch.equal(parameter.data == 0, zeros[name]), name


def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    whole, _, _ = train(6)
    monkeypatch.setattr("pruner_zero.recovery.train.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), reported_to(Stopping()):
        train(6, folder=tmp_path / "t")
    assert 0 < json.loads((tmp_path / "t" / JOURNAL).read_text().splitlines()[-1])["finished"] < 6
    again, _, _ = train(6, folder=tmp_path / "t")
    for (name, wanted), (_, actual) in zip(whole.weights(), again.weights(), strict=True):
        assert torch.equal(wanted, actual), name


class Stopping(Progress):
    """Progress that stops the program before the fourth step."""

    def track(
        self, items: Iterable[Any], label: str = "", total: int | None = None
    ) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield item


def test_one_window_is_not_enough() -> None:
    assert "--windows" in refusal(lambda: distillation(dense(), some_windows(1), 2))


def test_a_loss_that_is_not_finite_names_the_options_of_prune() -> None:
    model = dense()
    trained = distillation(model, some_windows(), 2)
    matrices = find_matrices(model.model)
    matrices[0].weight[0, 0] = 1e38
    line = refusal(lambda: trained(matrices))
    assert "is not finite: leave out the distillation, by --distill 0" in line
    assert "--learning-rate" not in line


class Weighed(Training):
    """Training that notes the bytes of its tensors."""

    held = 0

    def _validate(self, *given: Any) -> None:
        super()._validate(*given)
        tensors = [kept.positions for kept in self.learned]
        for values in self.values.values():
            assert values.grad is not None
            moments = self.optimizer.state[values]
            if moments:
                tensors += [values, values.grad, moments["exp_avg"], moments["exp_avg_sq"]]
        assert isinstance(self.loss, partial)
        models = size_of(self.model)[1] + size_of(self.loss.args[1])[1]
        type(self).held = models + sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_memory_is_that_of_the_tensors_that_training_holds(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("pruner_zero.recovery.distillation.Training", Weighed)
    train(1, dtype=dtype)
    teacher = dense()
    teacher.model.to(dtype)
    # The dense model is in memory already.
    more = Weighed.held - size_of(teacher.model)[1]
    assert least_bytes(teacher, monkeypatch) == more


def least_bytes(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """The least available memory in which distillation at a sparsity of 0.5 is not refused."""
    matrices, least, enough = find_matrices(model.model), 0, 2**30
    while enough - least > 1:
        middle = (least + enough) // 2
        monkeypatch.setattr("pruner_zero.recovery.distillation.available_bytes", lambda _: middle)  # noqa: B023
        try:
            check_memory(model, matrices, 0.5, **options)
            enough = middle
        except PrunerZeroError:
            least = middle
    return enough


def test_units_that_are_cut_out_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    weights = sum(matrix.weight.numel() for matrix in find_matrices(model.model))
    masked, cut = (least_bytes(model, monkeypatch, cut=cut) for cut in (False, True))
    assert masked - cut == 4 * weights / 2


def test_training_that_cannot_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    matrices = find_matrices(model.model)
    available: int | None = 0
    monkeypatch.setattr("pruner_zero.recovery.distillation.available_bytes", lambda _: available)
    line = refusal(lambda: check_memory(model, matrices, 0.5))
    assert line.startswith("distillation needs at least 0.0 GiB beside llama, and 0.0 are avail")
    available = None
    check_memory(model, matrices, 0.5)


def test_experts_that_are_left_out_stay_as_they_are() -> None:
    pruned = LanguageModel(tiny_model("mixtral", 1), tiny_tokenizer(), "mixtral")
    trained = distillation(pruned, some_windows(), 2)
    pruned.model.load_state_dict(tiny_model("mixtral", 0).state_dict())
    before = {name: weight.clone() for name, weight in pruned.weights()}
    trained(find_matrices(pruned.model, include=["*experts.down_proj[[]3]"]))
    for name, weight in pruned.weights():
        changed = [i for i in range(len(weight)) if not torch.equal(weight[i], before[name][i])]
        assert changed == ([3] if name.endswith("experts.down_proj") else []), name
