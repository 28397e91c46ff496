"""The training loop against a plain one, and within its budget of steps and minutes."""

import math
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.journal import JOURNAL, Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices, find_tables
from pruner_zero.models.next_token import next_token_loss
from pruner_zero.progress import reported_to
from pruner_zero.recovery.splitting import Split, split_windows
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import Windows
from pruner_zero.training import train
from pruner_zero.training.distillation import distillation
from pruner_zero.training.factored import FactoredMatrix
from pruner_zero.training.losses import text_loss
from pruner_zero.training.train import RATE, Batch, Budget, State, Training, float32_weights, rate
from tests.full_disk import full_disk
from tests.recovery.conftest import Stopping, prune_half, pruned_model
from tests.text.refusals import refusal
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import first_token_constant, tiny_model, tiny_windows
from tests.training.test_factored import Plain
from tests.training.test_targets import few, plain_divergence  # noqa: F401

SEQLEN = 16
BATCH, STEPS, HELD_OUT = 3, 5, 1


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.training.train.has_fast_bfloat16", lambda _: False)
    monkeypatch.setattr("pruner_zero.models.next_token.has_fast_bfloat16", lambda _: False)


@pytest.fixture(scope="module")
def parts(prose: str) -> tuple[Windows, Windows]:
    return split_windows(Corpus("prose", prose), tiny_tokenizer(), SEQLEN, 3)


def training(
    pruned: LanguageModel,
    parts: tuple[Windows, Windows],
    steps: int | None = None,
    minutes: float | None = None,
    rate: float = 0.1,
    tables: bool = False,
    **more: Any,
) -> Training:
    learned, held_out = parts

    def batches(step: int) -> Iterator[Batch]:
        drawn = Split([learned], [1], held_out).in_training_order(0, skipped=step * 2)
        while True:
            taken = torch.cat(list(islice(drawn, 2)))
            yield Batch(taken, text_loss(taken))

    def validation() -> Iterator[Batch]:
        return (Batch(window, text_loss(window)) for window in held_out.tokens.split(1))

    model, matrices = pruned.model, find_matrices(pruned.model)
    if tables:
        matrices += find_tables(model)
    more = {"keep_best": True, **more}
    budget, remedy = Budget(steps, minutes), "choose a lower --learning-rate"
    return Training(model, matrices, batches, validation, budget, rate, "recovery", remedy, **more)


def plain_training(
    model: torch.nn.Module,
    batches: list[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    tables: bool = False,
) -> list[float]:
    """Train `model` in place with dense gradients and their mean squares; the losses.

    Blocks give a constant for the first token.
    """

    matrices = find_matrices(model) + (find_tables(model) if tables else [])
    plain, losses = [Plain(matrix.weight) for matrix in matrices], []
    for step, batch in enumerate(batches):
        with first_token_constant(model):
            loss = loss_of(batch)
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        for matrix, learned in zip(matrices, plain, strict=True):
            assert matrix.parameter.grad is not None
            gradient = matrix.view(matrix.parameter.grad)
            learned.step(gradient, RATE * rate((step + 0.5) / len(batches)))
    return losses


def check_alike(
    ours: torch.nn.Module, plain: torch.nn.Module, zeros: dict[str, Tensor], within: float
) -> None:
    """Weights differ by a share of the learning rate at most, and zeros are where they were."""
    pairs = zip(ours.named_parameters(), plain.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        scale = RATE * float(expected.detach().square().mean().sqrt())
        difference = (parameter - expected).detach()
        assert float(difference.square().mean().sqrt()) <= within * scale, name
        assert name not in zeros or torch.equal(parameter == 0, zeros[name]), name
        assert parameter.requires_grad
        assert parameter.grad is None


@pytest.mark.parametrize(
    ("architecture", "tables"),
    [("llama", False), ("gpt2", False), ("mixtral", False), ("llama", True), ("gpt2", True)],
)
def test_it_learns_what_a_plain_loop_learns_of_a_text(
    architecture: str, tables: bool, parts: tuple[Windows, Windows]
) -> None:
    """Tables of tokens have a gradient of the inputs and of each chunk of logits."""
    (ours, zeros), (plain, _) = pruned_model(architecture), pruned_model(architecture)
    trained = training(ours, parts, STEPS, rate=RATE, keep_best=False, tables=tables)
    assert trained.run() == STEPS
    drawn = Split([parts[0]], [1], parts[1]).in_training_order(0)
    batches = [torch.cat(list(islice(drawn, 2))) for _ in range(STEPS)]
    plain_training(plain.model, batches, lambda taken: next_token_loss(plain.model, taken), tables)
    check_alike(ours.model, plain.model, zeros, 0.01)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_it_learns_what_a_plain_loop_with_a_teacher_learns(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.TOKENS", BATCH * SEQLEN)
    tokens = tiny_windows(8, SEQLEN)
    windows = Windows(tokens, "self", None, "as written", None, "sampled", 0)
    ours, plain, teacher = (tiny_model(architecture) for _ in range(3))
    trained = distillation(LanguageModel(ours, tiny_tokenizer(), "m"), windows, STEPS)
    zeros = prune_half(ours)
    prune_half(plain)
    curve = trained(ours, find_matrices(ours))

    def divergence(taken: Tensor) -> Tensor:
        """The mean over all positions that have a next token."""
        with torch.no_grad():
            p = teacher(taken).logits[:, :-1].flatten(0, 1).softmax(-1)
        return plain_divergence(plain(taken).logits[:, :-1].flatten(0, 1), p) / len(p)

    before = float(divergence(tokens[-HELD_OUT:]).detach())
    count, generator = len(tokens) - HELD_OUT, torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(STEPS)])
    batches = [tokens[order[BATCH * step :][:BATCH]] for step in range(STEPS)]
    losses = plain_training(plain, batches, divergence)
    after = float(divergence(tokens[-HELD_OUT:]).detach())
    assert curve[0].validation_loss == pytest.approx(before, rel=2e-3)
    assert curve[-1].validation_loss == pytest.approx(after, rel=2e-3)
    assert curve[-1].train_loss == pytest.approx(sum(losses) / STEPS, rel=2e-3)
    assert curve[-1].tokens == STEPS * BATCH * SEQLEN
    # The dense predictions are rounded to float16.
    check_alike(ours, plain, zeros, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_trained_and_come_back_in_their_dtype(
    dtype: torch.dtype, parts: tuple[Windows, Windows], tmp_path: Path
) -> None:
    results = []
    for _ in range(2):
        # The second one goes on from the state that the first one saved at its end.
        pruned, zeros = pruned_model(dtype=dtype)
        before = {name: tensor.clone() for name, tensor in pruned.weights()}
        run = training(pruned, parts, 10, journal=Journal(tmp_path, {}))
        assert run.run() > 0
        assert run.state.curve[-1].validation_loss < run.state.curve[0].validation_loss - 0.1
        results.append(dict(pruned.weights()))
    for name, tensor in results[0].items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, results[1][name])
        assert torch.equal(tensor, before[name]) == (name not in zeros)
        assert name not in zeros or torch.equal(tensor == 0, zeros[name])


def test_the_rate_rises_to_one_and_falls_along_half_a_cosine() -> None:
    fall = 1 - train.WARMUP
    shares = [0, train.WARMUP / 2, train.WARMUP, train.WARMUP + fall / 4, 1 - fall / 2, 1]
    wanted = [0.1, 0.55, 1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]
    assert [rate(share) for share in shares] == pytest.approx(wanted)


def test_the_budget_that_is_spent_sooner_counts() -> None:
    assert Budget(steps=10).spent(3, 1e9) == 0.3
    assert Budget(minutes=1).spent(10**9, 30) == 0.5
    both = Budget(10, 1)
    assert both.spent(5, 12) == 0.5
    assert both.spent(2, 45) == 0.75
    assert both.spent(20, 600) == 1


def test_the_curve_records_every_validation(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    before = loss_of(pruned, parts[1])
    run = training(pruned, parts, 10, validations=5)
    kept = run.run()
    curve = run.state.curve
    assert [point.step for point in curve] == [0, 2, 4, 6, 8, 10]
    assert [point.tokens for point in curve] == [step * 2 * SEQLEN for step in range(0, 11, 2)]
    assert curve[0].train_loss is None
    assert curve[0].validation_loss == pytest.approx(before)
    assert curve[-1].validation_loss < before - 0.1
    assert all(point.train_loss is not None for point in curve[1:])
    seconds = [point.seconds for point in curve]
    assert seconds == sorted(seconds)
    best = min(curve, key=lambda point: point.validation_loss)
    assert kept == best.step
    assert loss_of(pruned, parts[1]) == pytest.approx(best.validation_loss)


@torch.no_grad()
def loss_of(pruned: LanguageModel, validation: Windows) -> float:
    losses = [float(next_token_loss(pruned.model, window[None])) for window in validation.tokens]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("keep", [True, False])
def test_the_best_weights_are_kept_or_the_last_ones(
    keep: bool, parts: tuple[Windows, Windows]
) -> None:
    pruned, _ = pruned_model()
    before = [parameter.clone() for parameter in pruned.model.parameters()]
    # So large a rate raises the loss on tokens at random.
    judged = (parts[0], replace(parts[1], tokens=tiny_windows(3, SEQLEN)))
    assert training(pruned, judged, 3, rate=1e3, keep_best=keep).run() == (0 if keep else 3)
    pairs = zip(before, pruned.model.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs) == keep


def test_minutes_are_a_budget_for_everything(parts: tuple[Windows, Windows]) -> None:
    run = training(pruned_model()[0], parts, minutes=1 / 60, validations=4)
    run.run()
    last = run.state.curve[-1]
    assert 0.5 < last.seconds < 2
    assert last.step == run.state.step > 3
    assert 4 <= len(run.state.curve) <= 6


@pytest.mark.parametrize(("minutes", "steps"), [(1e-6, [0, 1]), (60, [0, 1, 2])])
def test_one_step_is_taken_at_least_and_no_more_than_asked_for(
    minutes: float, steps: list[int], parts: tuple[Windows, Windows]
) -> None:
    run = training(pruned_model()[0], parts, 2, minutes=minutes)
    run.run()
    assert [point.step for point in run.state.curve] == steps


@pytest.mark.fault(
    "a gradient or a score that is NaN or infinite",
    "one line that names the matrix; a candidate is rejected with the reason",
)
def test_a_loss_that_is_not_finite_is_one_line(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, 50, rate=1e38)
    line = refusal(lambda: run.run())
    assert "is not finite: choose a lower --learning-rate" in line


def test_progress_hears_every_validation(parts: tuple[Windows, Windows]) -> None:
    notes = Notes()
    with reported_to(notes):
        training(pruned_model()[0], parts, 2).run()
    assert [line.split(",")[0] for line in notes.lines] == ["step 0", "step 1", "step 2"]
    assert "loss on held-out windows" in notes.lines[-1]
    assert "in training" in notes.lines[-1]


@pytest.mark.fault("Ctrl-C")
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_waits_for_the_end_of_a_step_and_a_second_one_does_not(
    presses: int, parts: tuple[Windows, Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint has weights of which some have been changed by the step and others not."""
    step, notes = FactoredMatrix.step, Notes()

    def pressed(matrix: FactoredMatrix, gradient: Tensor, rate: float) -> None:
        step(matrix, gradient, rate)
        if matrix.steps == 2 and matrix.name.endswith("1.mlp.up_proj"):
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    run = training(pruned_model()[0], parts, 4, journal=Journal(tmp_path, {}))
    with monkeypatch.context() as patch, reported_to(notes):
        patch.setattr(FactoredMatrix, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            run.run()
    assert notes.lines[-1].endswith("another Ctrl-C stops at once")
    assert Journal(tmp_path, {}).finished == (2 if presses == 1 else 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, whole = pruned_model()[0], pruned_model()[0]
    training(again, parts, 4, journal=Journal(tmp_path, {})).run()
    training(whole, parts, 4).run()
    for (name, wanted), (_, actual) in zip(whole.weights(), again.weights(), strict=True):
        assert torch.equal(wanted, actual), name


def test_a_run_that_goes_on_waits_for_its_next_checkpoint(
    parts: tuple[Windows, Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(pruned_model()[0], parts, 8, journal=Journal(tmp_path, {}))
    with pytest.raises(KeyboardInterrupt), reported_to(Stopping()):
        run.run()
    # As if the steps before had taken an hour.
    earlier = State.from_json
    monkeypatch.setattr(State, "from_json", lambda value: replace(earlier(value), seconds=3600.0))
    training(pruned_model()[0], parts, 8, journal=Journal(tmp_path, {})).run()
    assert [line["finished"] for line in Journal(tmp_path, {}).lines] == [4, 8]


@pytest.mark.parametrize(("quick", "saved"), [(60.0, [1, 2, 3, 4]), (1e-9, [1, 4])])
def test_a_checkpoint_that_takes_long_is_written_more_rarely(
    quick: float,
    saved: list[int],
    parts: tuple[Windows, Windows],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 1e-6)
    monkeypatch.setattr(train, "_QUICK", quick)
    training(pruned_model()[0], parts, 4, journal=Journal(tmp_path, {})).run()
    assert [line["finished"] for line in Journal(tmp_path, {}).lines] == saved


def test_the_journal_holds_the_last_state_alone_also_after_a_full_disk(
    parts: tuple[Windows, Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)
    training(pruned_model()[0], parts, 2, journal=Journal(tmp_path, {})).run()
    before = sorted(file.name for file in tmp_path.iterdir())
    assert before == [JOURNAL, "state-000001.safetensors"]
    more = training(pruned_model()[0], parts, 4, journal=Journal(tmp_path, {}))
    with full_disk():
        assert "no space left" in refusal(lambda: more.run())
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert Journal(tmp_path, {}).finished == 2
    again = training(pruned_model()[0], parts, 4, journal=Journal(tmp_path, {}))
    again.run()
    assert [point.step for point in again.state.curve] == [0, 1, 2, 3, 4]


def test_the_widened_weights_are_freed_before_the_rounded_ones_are_made(
    parts: tuple[Windows, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both together take half as much memory again as the training."""
    widened: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watched(Training):
        def _train(self) -> None:
            super()._train()
            widened.extend(weakref.ref(kept.weight) for kept in self.learned.values())

    @contextmanager
    def watched(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        with float32_weights(parameters):
            yield
            # The parameters have other tensors over the same memory.
            alive.append(sum(reference() is not None for reference in widened))

    monkeypatch.setattr("pruner_zero.training.train.float32_weights", watched)
    monkeypatch.setitem(training.__globals__, "Training", Watched)
    pruned, _ = pruned_model(dtype=torch.bfloat16)
    run = training(pruned, parts, 1)
    run.run()
    assert widened
    assert alive == [0]
    assert run.trained == sum(int((m.weight != 0).sum()) for m in find_matrices(pruned.model))
