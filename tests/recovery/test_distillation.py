"""Distillation after pruning: nearer to the dense model, the same zeros, and the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pruner_zero.models import LanguageModel, find_matrices, size_of
from pruner_zero.recovery import Checkpoint, check_memory, distill, least_bytes
from pruner_zero.recovery.train import Training
from pruner_zero.recovery.trainable import KeptWeights
from pruner_zero.text.windows import Windows
from tests.recovery.conftest import pruned_model
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


def train(pruned: LanguageModel, teacher: LanguageModel, steps: int, **options: Any) -> Any:
    windows = options.pop("windows", None) or some_windows()
    return distill(pruned, teacher, windows, steps, matrices=find_matrices(pruned.model), **options)


def divergence(pruned: LanguageModel, windows: Windows) -> float:
    with torch.no_grad():
        wanted = dense().model(windows.tokens).logits.log_softmax(-1)
        predicted = pruned.model(windows.tokens).logits.log_softmax(-1)
    return float(functional.kl_div(predicted, wanted, log_target=True, reduction="batchmean"))


def test_the_pruned_model_comes_nearer_to_the_dense_one_and_keeps_its_zeros() -> None:
    pruned, zeros = pruned_model()
    windows = some_windows()
    before = divergence(pruned, windows)
    curve = train(pruned, dense(), 80, windows=windows)
    assert curve[-1].step == 80
    assert divergence(pruned, windows) < 0.9 * before
    for name, parameter in pruned.model.named_parameters():
        if name in zeros:
            assert torch.equal(parameter.data == 0, zeros[name]), name


def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    whole, _ = pruned_model()
    train(whole, dense(), 6)
    monkeypatch.setattr("pruner_zero.recovery.train.CHECKPOINT_SECONDS", 0.0)
    cut, _ = pruned_model()
    teacher, calls = dense(), 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt

    handle = teacher.model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(cut, teacher, 6, checkpoint=Checkpoint(tmp_path / "t", {}))
    handle.remove()
    checkpoint = Checkpoint(tmp_path / "t", {})
    assert 0 < checkpoint.finished < 6
    again, _ = pruned_model()
    train(again, dense(), 6, checkpoint=checkpoint)
    for (name, wanted), (_, actual) in zip(whole.weights(), again.weights(), strict=True):
        assert torch.equal(wanted, actual), name


def test_one_window_is_not_enough() -> None:
    pruned, _ = pruned_model()
    assert "--windows" in refusal(lambda: train(pruned, dense(), 2, windows=some_windows(1)))


def test_a_loss_that_is_not_finite_names_the_options_of_prune() -> None:
    pruned, _ = pruned_model()
    find_matrices(pruned.model)[0].weight[0, 0] = 1e38
    line = refusal(lambda: train(pruned, dense(), 2))
    assert "is not finite: leave out the distillation, by --distill 0" in line
    assert "--learning-rate" not in line


class Weighed(Training):
    """Training that notes the bytes of its tensors."""

    held = 0

    def run(self, *given: Any) -> int:
        step = super().run(*given)
        tensors = [*self.tensors.values()]
        for trainable in self.trainables:
            assert isinstance(trainable, KeptWeights)
            tensors.append(trainable.positions)
        for tensor in self.tensors.values():
            assert tensor.grad is not None
            moments = self.optimizer.state[tensor]
            tensors += [tensor.grad, moments["exp_avg"], moments["exp_avg_sq"]]
        assert self.teacher is not None
        models = size_of(self.model)[1] + size_of(self.teacher)[1]
        type(self).held = models + sum(tensor.nbytes for tensor in tensors)
        return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_least_memory_is_that_of_the_tensors_that_training_holds(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("pruner_zero.recovery.distillation.Training", Weighed)
    (pruned, _), teacher = pruned_model(dtype=dtype), dense()
    teacher.model.to(dtype)
    needed = least_bytes(teacher, find_matrices(teacher.model), 0.5)
    train(pruned, teacher, 1)
    assert Weighed.held == needed


def test_units_that_are_cut_out_are_not_counted() -> None:
    model = dense()
    matrices = find_matrices(model.model)
    weights = sum(matrix.weight.numel() for matrix in matrices)
    masked, cut = (least_bytes(model, matrices, 0.25, cut=cut) for cut in (False, True))
    assert masked - cut == weights


def test_training_that_cannot_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gibibyte = 2**30
    monkeypatch.setattr("pruner_zero.recovery.distillation.available_bytes", lambda _: gibibyte)
    line = refusal(lambda: check_memory(3 * gibibyte, dense()))
    assert line.startswith("distillation needs at least 3.0 GiB beside llama, and 1.0 are avail")
    # The dense model is in memory already.
    check_memory(gibibyte + size_of(dense().model)[1], dense())
    monkeypatch.setattr("pruner_zero.recovery.distillation.available_bytes", lambda _: None)
    check_memory(3 * gibibyte, dense())


def test_experts_that_are_left_out_stay_as_they_are() -> None:
    pruned, teacher = (
        LanguageModel(tiny_model("mixtral", seed), tiny_tokenizer(), "mixtral") for seed in (0, 1)
    )
    before = {name: weight.clone() for name, weight in pruned.weights()}
    matrices = find_matrices(pruned.model, include=["*experts.down_proj[[]3]"])
    distill(pruned, teacher, some_windows(), 2, matrices=matrices)
    for name, weight in pruned.weights():
        changed = [i for i in range(len(weight)) if not torch.equal(weight[i], before[name][i])]
        assert changed == ([3] if name.endswith("experts.down_proj") else []), name
