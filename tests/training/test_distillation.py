"""Distillation after pruning: nearer to the dense model, the same zeros, and the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices, size_of
from pruner_zero.offload.model import load_offloaded
from pruner_zero.progress import reported_to
from pruner_zero.pruning.prune import prune
from pruner_zero.text.token_windows import Windows
from pruner_zero.training.distillation import check_memory, distillation
from pruner_zero.training.train import Training
from tests.conftest import save_tiny
from tests.recovery.conftest import prune_half, pruned_model
from tests.text.refusals import refusal
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.TOKENS", 32)


def some_windows(count: int = 8, alike: int = 1) -> Windows:
    """`count` windows; where `alike`, a step lowers the loss on the held-out one too."""
    tokens = tiny_windows(count, 16).repeat(alike, 1)
    return Windows(tokens, "self", None, "as written", None, "sampled", 0)


def dense() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")


def train(steps: int, windows: Windows | None = None, dtype: Any = None, **options: Any) -> Any:
    """The dense model, pruned and trained; the zeros that it was given; the learning curve."""
    model = dense()
    model.model.to(dtype)
    trained = distillation(model, windows or some_windows(), steps, **options)
    zeros = prune_half(model.model)
    return model, zeros, trained(model.model, find_matrices(model.model))


@pytest.mark.parametrize("rate", [1e-3, 1.0])
@pytest.mark.parametrize("folder", ["t", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_raise_the_loss_on_held_out_windows_are_undone_and_told(
    rate: float,
    folder: str | None,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.RATE", rate)
    notes, before = Notes(), dict(pruned_model(dtype=dtype)[0].weights())
    with reported_to(notes):
        model, _, curve = train(10, dtype=dtype, folder=folder and tmp_path / folder)
    raised = curve[-1].validation_loss > curve[0].validation_loss
    assert raised == (rate == 1.0)
    told = [line for line in notes.lines if line.startswith("distillation raised the loss")]
    assert bool(told) == raised
    assert all("so that the weights before it are kept" in line for line in told)
    same = [torch.equal(weight, before[name]) for name, weight in model.weights()]
    assert all(same) == raised


@pytest.mark.parametrize("offload", [False, True])
def test_prune_writes_the_weights_before_such_steps_and_the_card_says_so(
    offload: bool, llama_folder: Path, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.RATE", 1.0)
    options: dict[str, Any] = {"calibration": [prose], "windows": 4, "seqlen": 24}
    options |= {"metric": "wanda", "sparsity": 0.5, "offload": offload}
    for steps in (0, 20):
        prune(llama_folder, output=tmp_path / f"{steps}", distill=steps, **options)
    plain, kept = (load_model(tmp_path / name).weights() for name in ("0", "20"))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, kept, strict=True))
    card = (tmp_path / "20" / "README.md").read_text()
    assert "nats per token, so that the weights before it were kept." in card


def test_a_step_is_half_as_large_where_a_matrix_has_four_times_the_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = dict(pruned_model()[0].weights())

    def step() -> Tensor:
        moved = dict(train(1, some_windows(1, alike=3))[0].weights())
        return torch.cat([(moved[name] - start[name]).flatten() for name in start])

    whole = step()
    inputs = max(matrix.weight.shape[1] for matrix in find_matrices(pruned_model()[0].model))
    monkeypatch.setattr("pruner_zero.training.distillation._INPUTS", inputs / 4)
    assert whole.abs().max() > 0
    torch.testing.assert_close(step(), whole / 2, rtol=1e-2, atol=1e-7)


def test_one_window_is_not_enough() -> None:
    assert "--windows" in refusal(lambda: distillation(dense(), some_windows(1), 2))


def test_a_loss_that_is_not_finite_names_the_options_of_prune() -> None:
    model = dense()
    trained = distillation(model, some_windows(), 2)
    matrices = find_matrices(model.model)
    matrices[0].weight[0, 0] = 1e38
    line = refusal(lambda: trained(model.model, matrices))
    assert "is not finite: leave out the distillation, by --distill 0" in line
    assert "--learning-rate" not in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("native", [True, False])
def test_the_least_memory_is_the_weights_in_training_a_gradient_twice_and_logits_twice(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, native: bool
) -> None:
    held = []

    class Weighed(Training):
        def _train(self) -> None:
            held.append(size_of(self.model)[1])
            super()._train()

    for module in ("training.train", "models.next_token"):
        monkeypatch.setattr(f"pruner_zero.{module}.has_fast_bfloat16", lambda _: native)
    monkeypatch.setattr("pruner_zero.training.distillation.Training", Weighed)
    monkeypatch.setattr("pruner_zero.training.distillation.LOGITS", 1000)
    monkeypatch.setattr("pruner_zero.training.targets.LOGITS", 1000)
    train(1, dtype=dtype)
    model = dense()
    model.model.to(dtype)
    largest = max(matrix.weight.numel() for matrix in find_matrices(model.model))
    # The dense model is in memory already.
    more = held[0] - size_of(model.model)[1] + 8 * largest + 8 * 1000
    assert least_bytes(model, monkeypatch) == more


def least_bytes(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, **options: Any) -> int:
    """The least available memory in which distillation at a sparsity of 0.5 is not refused."""
    matrices, least, enough = find_matrices(model.model), 0, 2**30
    while enough - least > 1:
        middle = (least + enough) // 2
        monkeypatch.setattr("pruner_zero.training.distillation.available_bytes", lambda _: middle)  # noqa: B023
        try:
            check_memory(model, matrices, 0.5, **options)
            enough = middle
        except PrunerZeroError:
            least = middle
    return enough


@pytest.mark.parametrize("copied", [False, True])
def test_units_that_are_cut_out_are_not_counted_and_a_copy_is(
    copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense()
    model.model.bfloat16()
    weights = sum(matrix.weight.numel() for matrix in find_matrices(model.model))
    masked, cut = (least_bytes(model, monkeypatch, cut=cut, copied=copied) for cut in (0, 1))
    assert masked - least_bytes(model, monkeypatch) == 2 * weights * copied
    assert masked - cut == (4 + 2 * copied) * weights / 2


def test_of_a_model_on_disk_all_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model")
    here, there = load_model(folder), load_offloaded(folder)
    both = [least_bytes(model, monkeypatch) for model in (here, there)]
    assert both[1] - both[0] == size_of(here.model)[1]


def test_training_that_cannot_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    matrices = find_matrices(model.model)
    available: int | None = 0
    monkeypatch.setattr("pruner_zero.training.distillation.available_bytes", lambda _: available)
    line = refusal(lambda: check_memory(model, matrices, 0.5))
    assert line.startswith("distillation needs at least 0.1 GiB beside llama, and 0.0 are avail")
    available = None
    check_memory(model, matrices, 0.5)


def test_experts_that_are_left_out_stay_as_they_are() -> None:
    pruned = LanguageModel(tiny_model("mixtral", 1), tiny_tokenizer(), "mixtral")
    trained = distillation(pruned, some_windows(1, alike=3), 2)
    pruned.model.load_state_dict(tiny_model("mixtral", 0).state_dict())
    before = {name: weight.clone() for name, weight in pruned.weights()}
    trained(pruned.model, find_matrices(pruned.model, include=["*experts.down_proj[[]3]"]))
    for name, weight in pruned.weights():
        changed = [i for i in range(len(weight)) if not torch.equal(weight[i], before[name][i])]
        assert changed == ([3] if name.endswith("experts.down_proj") else []), name
