"""The training loop: optimizer steps within a budget, validations, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pruner_zero.calibration.gradients import gradients_to
from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.loss import next_token_loss
from pruner_zero.models.structure import Matrix, experts_of, parameters_of
from pruner_zero.progress import note, track
from pruner_zero.pruning.method import Point
from pruner_zero.recovery.kept_weights import KeptWeights, float32_weights
from pruner_zero.recovery.windows import in_training_order
from pruner_zero.settings.recover import RecoverSettings
from pruner_zero.tensor_file import write_tensors
from pruner_zero.text.windows import Windows

# A budget of minutes allows few steps; the usual 0.999 averages over more steps.
BETAS = (0.9, 0.95)
# Gradients are clipped to this norm.
CLIP = 1.0
# The share of the budget in which the rate rises. It begins at a tenth of the highest rate, since
# a first step with rate 0 would do nothing.
WARMUP = 0.05
FIRST_RATE = 0.1
VALIDATIONS = 10
CHECKPOINT_SECONDS = 120.0
# The most tokens of a forward pass, but for one window: enough that the cost of casting weights to
# bfloat16 and of adding gradients is small, few enough that the logits fit in memory.
FORWARD_TOKENS = 1024
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def rate(share: float) -> float:
    """The learning rate as a share of the highest, when `share` of the budget is spent.

    Linear up to 1 at `WARMUP`, then along half a cosine to 0 at the end.
    """
    if share < WARMUP:
        return FIRST_RATE + (1 - FIRST_RATE) * share / WARMUP
    return (1 - math.cos(math.pi * (1 - share) / (1 - WARMUP))) / 2


@dataclass
class State:
    """The state of a run except its tensors.

    losses: the loss of each step since the last point of the curve. validation_seconds,
    step_seconds: how long the last validation and the last step took.
    """

    step: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    step_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "State":
        """Read back what `asdict` made."""
        return cls(**{**value, "curve": [Point(**point) for point in value["curve"]]})

    @property
    def best_step(self) -> int:
        """The first step with the lowest validation loss."""
        return min(self.curve, key=lambda point: point.validation_loss).step


@dataclass(eq=False, repr=False)
class Training:
    """Trains the kept weights of `matrices` on `texts` and measures the loss on `validation`.

    The settings and the step number determine everything; there is no other random state. The
    model stays in evaluation mode, without dropout. The weights are fp32 in training; matrix
    products are computed in `dtype`, which is bfloat16 where the settings say "auto" and the device
    multiplies it natively. matrices: of `model`, whose other weights stay as they are. texts: the
    windows (n, seqlen) of each text, which take turns by their `shares`. loss: the loss of windows
    (n, tokens), a scalar. journal: where the run is saved and resumed from. remedy: what the
    message on a loss that is not finite tells the user to do. validations: how many times the
    validation loss is measured over the budget.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    texts: Sequence[Windows]
    shares: Sequence[float]
    validation: Windows
    settings: RecoverSettings
    loss: Callable[[Tensor], Tensor]
    journal: Journal | None = None
    remedy: str = "choose a lower --learning-rate, or --compute-dtype float32"
    validations: int = VALIDATIONS

    def __post_init__(self) -> None:
        device, name = next(self.model.parameters()).device, self.settings.compute_dtype
        narrow = has_fast_bfloat16(device) if name == "auto" else name == "bfloat16"
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.autocast: Callable[[], AbstractContextManager[None]] = nullcontext
        if narrow:
            self.autocast = partial(torch.autocast, device.type, torch.bfloat16)
        self.learned = [
            KeptWeights(name, parameter, experts_of(self.matrices, name))
            for name, parameter in parameters_of(self.matrices).items()
        ]
        self.values = {kept.name: kept.values for kept in self.learned}
        self.optimizer = torch.optim.AdamW(
            [{"params": [kept.values], "scale": kept.rate_scale} for kept in self.learned],
            self.settings.learning_rate,
            BETAS,
            weight_decay=0.0,
            fused=True,
        )
        self.best: dict[str, Tensor] | None = None
        self.state = State()

    def run(self) -> int:
        """Train until the budget is spent; return the step whose weights the model then has.

        Raises PrunerZeroError where the loss is no longer finite.
        """
        pulls = {kept.parameter: kept.pull for kept in self.learned}
        with float32_weights(self.model), gradients_to(pulls, self.model):
            if self.journal and self.journal.lines:
                self._restore(self.journal)
            state, steps = self.state, self.settings.steps
            saved = time.monotonic()
            start = saved - state.seconds
            left = steps and steps - state.step
            if not state.curve:
                self._validate(start)
            for batch in track(self._batches(start), "recovery", left):
                began = time.monotonic()
                state.losses.append(self._step(batch))
                state.step_seconds = time.monotonic() - began
                state.seconds = time.monotonic() - start
                if self._validation_is_due():
                    self._validate(start)
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
            if state.losses:
                self._validate(start)
            self._save()
            if self.best is None:
                return state.step
            self._put(self.best)
            return state.best_step

    def _spent(self, step: float, seconds: float) -> float:
        """The share of the budget spent after `step` steps and `seconds` seconds, in [0, 1]."""
        steps, minutes = self.settings.steps, self.settings.minutes
        of_steps = step / steps if steps else 0.0
        of_time = seconds / (60 * minutes) if minutes else 0.0
        return min(max(of_steps, of_time), 1.0)

    def _batches(self, start: float) -> Iterator[list[Tensor]]:
        """The windows of each step until the budget is spent; at least one step."""
        state, size = self.state, self.settings.batch
        skipped, seed = state.step * size, self.settings.seed
        windows = in_training_order(self.texts, self.shares, seed, skipped)
        while True:
            ahead = state.step_seconds + state.validation_seconds
            share = self._spent(state.step, time.monotonic() - start + ahead)
            if state.step and share >= 1:
                return
            yield [next(windows) for _ in range(size)]

    def _step(self, batch: Sequence[Tensor]) -> float:
        """One optimizer step on the mean loss of `batch`, which is returned."""
        state, settings = self.state, self.settings
        self.optimizer.zero_grad(set_to_none=False)
        total = 0.0
        for windows in torch.cat(list(batch)).split(max(1, FORWARD_TOKENS // settings.seqlen)):
            with self.autocast():
                loss = self.loss(windows) * (len(windows) / len(batch))
            loss.backward()
            total += float(loss.detach())
        self._check(total)
        torch.nn.utils.clip_grad_norm_(self.values.values(), CLIP)
        # At the middle of the step, so that neither the first nor the last has a rate of 0.
        ahead = state.validation_seconds + state.step_seconds / 2
        share = self._spent(state.step + 0.5, state.seconds + ahead)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(share) * group["scale"]
        self.optimizer.step()
        state.step += 1
        for kept in self.learned:
            kept.write()
        return total

    def _validation_is_due(self) -> bool:
        """Whether the budget passed a boundary of its equal parts since the last validation."""
        last, parts = self.state.curve[-1], self.validations
        now = self._spent(self.state.step, self.state.seconds)
        return int(now * parts) > int(self._spent(last.step, last.seconds) * parts)

    @torch.no_grad()
    def _validate(self, start: float) -> None:
        state, settings = self.state, self.settings
        began = time.monotonic()
        with self.autocast():
            tokens = self.validation.tokens
            losses = [float(next_token_loss(self.model, window[None])) for window in tokens]
        loss = sum(losses) / len(losses)
        self._check(loss)
        state.validation_seconds = time.monotonic() - began
        state.seconds = time.monotonic() - start
        train = sum(state.losses) / len(state.losses) if state.losses else None
        state.losses = []
        seen = state.step * settings.batch * settings.seqlen
        state.curve.append(Point(state.step, round(state.seconds, 2), seen, train, loss))
        if settings.keep == "best" and state.best_step == state.step:
            self.best = {name: values.clone() for name, values in self.values.items()}
        note(
            f"step {state.step}, {state.seconds:.0f} s: validation loss {loss:.4f}"
            + ("" if train is None else f", training loss {train:.4f}")
        )

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            step = self.state.step
            raise PrunerZeroError(f"the loss at step {step} is not finite: {self.remedy}")

    def _save(self) -> None:
        """Write the state and its tensors to the journal, and delete those of the state before."""
        if self.journal is None:
            return
        tensors = {f"{name}.value": values for name, values in self.values.items()}
        tensors |= {f"{name}.best": values for name, values in (self.best or {}).items()}
        for name, values in self.values.items():
            tensors |= {f"{name}.{key}": self.optimizer.state[values][key] for key in MOMENTS}
        lines = self.journal.lines
        file = f"state-{len(lines):06d}.safetensors"
        files = {file: write_tensors(self.journal.folder / file, tensors)}
        line = {"finished": self.state.step, "state": asdict(self.state), "tensors": file}
        self.journal.append(line, files, [lines[-1]["tensors"]] if lines else [])

    def _restore(self, journal: Journal) -> None:
        line = journal.lines[-1]
        saved = load_file(journal.folder / line["tensors"])
        self.state = State.from_json(line["state"])
        self._put({name: saved[f"{name}.value"] for name in self.values})
        if self.settings.keep == "best":
            self.best = {name: saved[f"{name}.best"] for name in self.values}
        for name, values in self.values.items():
            self.optimizer.state[values] = {
                key: saved[f"{name}.{key}"].to(values.device, copy=True) for key in MOMENTS
            }

    def _put(self, saved: Mapping[str, Tensor]) -> None:
        for kept in self.learned:
            kept.values.copy_(saved[kept.name])
            kept.write()
