"""The training loop against a plain one, and within its budget of steps and minutes."""

import math
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.journal import JOURNAL, Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.loss import next_token_loss
from pruner_zero.models.structure import find_matrices, parameters_of
from pruner_zero.progress import Progress, reported_to
from pruner_zero.recovery import train
from pruner_zero.recovery.kept_weights import KeptWeights, float32_weights
from pruner_zero.recovery.loss import distillation_loss
from pruner_zero.recovery.train import BETAS, State, Training
from pruner_zero.recovery.windows import in_training_order, split_windows
from pruner_zero.settings.recover import RecoverSettings
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.windows import Windows
from tests.full_disk import full_disk
from tests.recovery.conftest import pruned_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SEQLEN = 16
# A warmup of some steps, and a norm that some gradients exceed.
WARMUP, CLIP = 0.3, 0.5


@pytest.fixture(scope="module")
def parts(prose: str) -> tuple[Windows, Windows]:
    return split_windows(Corpus("prose", prose), tiny_tokenizer(), SEQLEN, 3)


def settings(**options: Any) -> RecoverSettings:
    sizes = {"seqlen": SEQLEN, "batch": 2, "learning_rate": 0.1, "compute_dtype": "float32"}
    return RecoverSettings(**{"model": "m", "text": "t", **sizes, **options})


def training(
    pruned: LanguageModel,
    parts: tuple[Windows, Windows],
    config: RecoverSettings,
    teacher: torch.nn.Module | None = None,
    **more: Any,
) -> Training:
    model, matrices = pruned.model, find_matrices(pruned.model)
    loss = partial(next_token_loss, model)
    if teacher is not None:
        loss = partial(distillation_loss, model, teacher, share=config.teacher_share or 1.0)
    learned, held_out = parts
    return Training(model, matrices, [learned], [1], held_out, config, loss, **more)


def plain_training(pruned: LanguageModel, windows: Windows, config: RecoverSettings) -> None:
    """The same in the ordinary way: dense parameters, masked gradients, AdamW written out."""
    model, steps = pruned.model, config.steps or 0
    parameters = parameters_of(find_matrices(model)).values()
    masks = [(parameter != 0).float() for parameter in parameters]
    sizes = [parameter.detach().square().mean().sqrt() for parameter in parameters]
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    drawn = in_training_order([windows], [1], config.seed)
    for step in range(steps):
        batch = torch.cat(list(islice(drawn, config.batch)))
        logits = model(batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        dense_gradients = torch.autograd.grad(loss, list(parameters))
        gradients = [gradient * mask for gradient, mask in zip(dense_gradients, masks, strict=True)]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        shrink = min(1.0, CLIP / (norm + 1e-6))
        share = (step + 0.5) / steps
        warm = 0.1 + 0.9 * share / WARMUP if share < WARMUP else None
        cosine = 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))
        learning_rate = config.learning_rate * (cosine if warm is None else warm)
        with torch.no_grad():
            columns = (parameters, sizes, gradients, first, second)
            for parameter, size, gradient, m, v in zip(*columns, strict=True):
                m.mul_(BETAS[0]).add_(gradient * shrink, alpha=1 - BETAS[0])
                v.mul_(BETAS[1]).add_((gradient * shrink).square(), alpha=1 - BETAS[1])
                mean = m / (1 - BETAS[0] ** (step + 1))
                deviation = (v / (1 - BETAS[1] ** (step + 1))).sqrt() + 1e-8
                parameter.sub_(learning_rate * size * mean / deviation)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_it_learns_what_a_plain_masked_loop_learns(
    architecture: str, parts: tuple[Windows, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.recovery.train.WARMUP", WARMUP)
    monkeypatch.setattr("pruner_zero.recovery.train.CLIP", CLIP)
    config = settings(steps=6, keep="last")
    (ours, zeros), (plain, _) = pruned_model(architecture), pruned_model(architecture)
    untouched = ours.model.get_input_embeddings().weight.clone()
    assert training(ours, parts, config).run() == 6
    plain_training(plain, parts[0], config)
    pairs = zip(ours.model.named_parameters(), plain.model.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=2e-5, msg=name)
        assert name not in zeros or not parameter[zeros[name]].any()
        assert parameter.requires_grad
        assert parameter.grad is None
    assert torch.equal(ours.model.get_input_embeddings().weight, untouched)


def test_the_rate_is_a_share_of_the_size_of_the_weights_but_not_of_next_to_nothing() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    scales = [KeptWeights("w", torch.nn.Parameter(weight * c)).rate_scale for c in (1, 0.1, 1e-6)]
    assert scales == pytest.approx([math.sqrt(2.5), math.sqrt(2.5) / 10, 1e-3])


def test_the_rate_rises_to_one_and_falls_to_zero() -> None:
    shares = [index / 200 for index in range(201)]
    rates = [train.rate(share) for share in shares]
    assert all(0 <= value <= 1 for value in rates)
    assert train.rate(train.WARMUP) == 1
    assert rates[-1] == 0
    rising = [value for value, share in zip(rates, shares, strict=True) if share < train.WARMUP]
    assert all(earlier < later for earlier, later in pairwise(rising))
    falling = rates[len(rising) :]
    assert all(earlier > later for earlier, later in pairwise(falling))
    assert rates[0] > 0


def test_the_fall_is_half_a_cosine() -> None:
    fall = 1 - train.WARMUP
    assert train.rate(train.WARMUP + fall / 2) == pytest.approx(0.5)
    assert train.rate(train.WARMUP + fall / 4) == pytest.approx(0.8535533905932737)


def test_the_budget_that_is_spent_sooner_counts(parts: tuple[Windows, Windows]) -> None:
    def spent(step: int, seconds: float, **budget: float) -> float:
        return training(pruned_model()[0], parts, settings(**budget))._spent(step, seconds)

    assert spent(3, 1e9, steps=10) == 0.3
    assert spent(10**9, 30, minutes=1) == 0.5
    both = {"steps": 10, "minutes": 1}
    assert spent(5, 12, **both) == 0.5
    assert spent(2, 45, **both) == 0.75
    assert spent(20, 600, **both) == 1


def test_the_curve_records_every_validation(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    before = loss_of(pruned, parts[1])
    run = training(pruned, parts, settings(steps=10), validations=5)
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


def test_the_best_weights_are_kept_or_the_last_ones(parts: tuple[Windows, Windows]) -> None:
    # Validated on the model's own text: the more it learns of the other, the larger this loss.
    says = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(SEQLEN - 1):
            likeliest = pruned_model()[0].model(says).logits[:, -1:].argmax(-1)
            says = torch.cat([says, likeliest], dim=1)
    judged = (parts[0], replace(parts[1], tokens=says))
    kept_steps = {}
    for keep in ("best", "last"):
        pruned, _ = pruned_model()
        before = [parameter.clone() for parameter in pruned.model.parameters()]
        run = training(pruned, judged, settings(steps=3, keep=keep))
        kept_steps[keep] = run.run()
        after = list(pruned.model.parameters())
        same = all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert same == (keep == "best")
    assert kept_steps == {"best": 0, "last": 3}


def test_minutes_are_a_budget_for_everything(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, settings(minutes=2 / 60), validations=4)
    run.run()
    last = run.state.curve[-1]
    assert 1 < last.seconds < 3
    assert last.step > 3
    assert 4 <= len(run.state.curve) <= 6
    assert last.step == run.state.step


def test_a_budget_too_small_for_anything_gives_one_step(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, settings(minutes=1e-6))
    run.run()
    assert [point.step for point in run.state.curve] == [0, 1]


def test_steps_are_not_exceeded_where_there_is_time(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, settings(steps=2, minutes=60))
    run.run()
    assert run.state.step == 2


@pytest.mark.fault(
    "a gradient or a score that is NaN or infinite",
    "one line that names the matrix; a candidate is rejected with the reason",
)
def test_a_loss_that_is_not_finite_is_one_line(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, settings(steps=50, learning_rate=1e38))
    line = refusal(lambda: run.run())
    assert "is not finite: choose a lower --learning-rate" in line


def test_the_teacher_pulls_the_model_towards_itself(parts: tuple[Windows, Windows]) -> None:
    teacher = tiny_model("llama")

    def apart(model: torch.nn.Module) -> float:
        with torch.no_grad():
            pairs = [
                network(parts[1].tokens).logits.log_softmax(-1) for network in (teacher, model)
            ]
        return float((pairs[0].exp() * (pairs[0] - pairs[1])).sum(-1).mean())

    distances = []
    for share in (0.0, 1.0):
        pruned, _ = pruned_model()
        config = settings(steps=20, keep="last", teacher="t", teacher_share=share or 0.5)
        run = training(pruned, parts, config, teacher=teacher if share else None)
        run.run()
        distances.append(apart(pruned.model))
    assert distances[1] < apart(pruned_model()[0].model) < distances[0]


def test_progress_hears_every_validation(parts: tuple[Windows, Windows]) -> None:
    class Heard(Progress):
        lines: list[str] = []  # noqa: RUF012

        def note(self, line: str) -> None:
            self.lines.append(line)

    pruned, _ = pruned_model()
    with reported_to(Heard()):
        training(pruned, parts, settings(steps=2)).run()
    assert [line.split(",")[0] for line in Heard.lines] == ["step 0", "step 1", "step 2"]
    assert "validation loss" in Heard.lines[-1]
    assert "training loss" in Heard.lines[-1]


def test_a_state_reads_back_as_itself(parts: tuple[Windows, Windows]) -> None:
    pruned, _ = pruned_model()
    run = training(pruned, parts, settings(steps=3))
    run.run()
    assert State.from_json(asdict(run.state)) == run.state


def test_the_journal_holds_the_last_state_alone_also_after_a_full_disk(
    parts: tuple[Windows, Windows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.recovery.train.CHECKPOINT_SECONDS", 0.0)
    training(pruned_model()[0], parts, settings(steps=2), journal=Journal(tmp_path, {})).run()
    before = sorted(file.name for file in tmp_path.iterdir())
    assert before == [JOURNAL, "state-000002.safetensors"]
    more = training(pruned_model()[0], parts, settings(steps=4), journal=Journal(tmp_path, {}))
    with full_disk():
        assert "no space left" in refusal(lambda: more.run())
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert Journal(tmp_path, {}).finished == 2
    again = training(pruned_model()[0], parts, settings(steps=4), journal=Journal(tmp_path, {}))
    again.run()
    assert [point.step for point in again.state.curve] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_float32_inside_and_of_their_own_dtype_afterwards(dtype: torch.dtype) -> None:
    pruned, _ = pruned_model(dtype=dtype)
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in pruned.weights()}
    with float32_weights(pruned.model):
        assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.float32}
    for name, tensor in pruned.weights():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name])
