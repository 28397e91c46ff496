"""Training of kept weights in little memory: steps within a budget, validations, checkpoints."""

import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruner_zero.devices import has_fast_bfloat16
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import blocks_recomputed, first_token_apart, run_blocks
from pruner_zero.models.matrices import OUTSIDE, Matrix, parameters_of
from pruner_zero.models.next_token import fast_products, gradients_to
from pruner_zero.progress import note, track
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.training.factored import FactoredMatrix
from pruner_zero.training.targets import logits_in_chunks

# The highest learning rate, as a share of the root mean square of each matrix.
RATE = 1e-3
# The share of the budget in which the rate rises. It begins at a tenth of the highest rate, since
# a first step with rate 0 would do nothing.
WARMUP = 0.05
FIRST_RATE = 0.1
VALIDATIONS = 10
# Between two checkpoints, which have 4 bytes a weight, zeros included. One that takes longer than
# 2 seconds to write is written that many times more rarely: at most 1/30 of the time goes to them.
CHECKPOINT_SECONDS = 60.0
_QUICK = 2.0


def rate(share: float) -> float:
    """The learning rate as a share of the highest, when `share` of the budget is spent.

    Linear up to 1 at `WARMUP`, then along half a cosine to 0 at the end.
    """
    if share < WARMUP:
        return FIRST_RATE + (1 - FIRST_RATE) * share / WARMUP
    return (1 - math.cos(math.pi * (1 - share) / (1 - WARMUP))) / 2


# Of some logits (positions, vocabulary) and the slice of the positions that they belong to, which
# are those of all windows that have a next token, numbered through: the sum of the loss over them,
# in nats, and its gradient, both float32.
Loss = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """The windows (n, tokens) of an optimizer step or of a validation, with their loss."""

    windows: Tensor
    loss: Loss


@dataclass(frozen=True)
class Point:
    """A point of the learning curve: losses in nats per token, seconds and tokens since the start.

    train_loss: the mean over the steps since the point before, None at the start; with a teacher it
    is the distillation loss. validation_loss: on held-out windows, the next-token loss, or the
    divergence from the dense model's predictions where `prune` trains.
    """

    step: int
    seconds: float
    tokens: int
    train_loss: float | None
    validation_loss: float


@dataclass(frozen=True)
class Budget:
    """How long a training lasts: until either is spent; None where there is no such limit."""

    steps: int | None = None
    minutes: float | None = None

    def spent(self, step: float, seconds: float) -> float:
        """The share spent after `step` steps and `seconds` seconds, in [0, 1]."""
        of_steps = step / self.steps if self.steps else 0.0
        of_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(max(of_steps, of_time), 1.0)


@dataclass
class State:
    """The state of a run except its tensors.

    tokens: trained on so far. losses: the loss of each step since the last point of the curve.
    validation_seconds, step_seconds: how long the last validation and the last step took.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
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
    """Trains the kept weights of `matrices` of `model` in place; zeros stay zero.

    In little memory: the backward pass changes each weight as soon as its gradient is complete and
    frees the gradient (tables of tokens after the pass), and activations are computed again block
    by block. What is computed for the first token of a window gets no gradient
    (`first_token_apart`). Trained weights are float32 meanwhile; products are in bfloat16 where the
    device has it natively. The model stays in evaluation mode, without dropout.

    batches: those from a step on, without end. validation: what the loss is measured on before,
    `validations` times over the budget, and after. learning_rate: the highest, as a share of the
    root mean square of each matrix. name: in the progress. remedy: what the message on a loss that
    is not finite tells the user to do. keep_best: at the end the model has the weights of the
    lowest validation loss. journal: where the run is saved and resumed from; with it, Ctrl-C waits
    for the step in progress, whose weights are partly changed, and for a checkpoint. Batches,
    budget and the step number determine everything; there is no random state.
    """

    model: nn.Module
    matrices: Sequence[Matrix]
    batches: Callable[[int], Iterator[Batch]]
    validation: Callable[[], Iterator[Batch]]
    budget: Budget
    learning_rate: float
    name: str
    remedy: str
    keep_best: bool = False
    validations: int = VALIDATIONS
    journal: Journal | None = None

    def __post_init__(self) -> None:
        self.state = State()
        self.device = next(self.model.parameters()).device
        self.parameters = parameters_of(self.matrices)
        self.dtypes = {name: parameter.dtype for name, parameter in self.parameters.items()}
        self.learned: dict[Matrix, FactoredMatrix] = {}
        # The number of trained weights, once the run has ended.
        self.trained = 0
        self.best: dict[str, Tensor] = {}
        # Of tables, which have a gradient for each chunk of logits and for the inputs.
        self.gathered: dict[Matrix, Tensor] = {}
        # When the next checkpoint is due, and whether the weights are those between two steps.
        self.due, self.between_steps = 0.0, True

    def run(self) -> int:
        """Train until the budget is spent; return the step whose weights the model then has.

        Raises PrunerZeroError where the loss is no longer finite.
        """
        every = everything_in_float32(self.model, self.device)
        widened = self.model.parameters() if every else self.parameters.values()
        with float32_weights(list(widened)):
            # Of the widened weights, which are other tensors where their own dtype is narrow.
            self.learned = {m: FactoredMatrix(m.name, m.weight) for m in self.matrices}
            if self.journal and self.journal.lines:
                self._restore(self.journal)
            try:
                self._train()
            except KeyboardInterrupt:
                if self.between_steps:
                    self._save()
                raise
            self.trained = sum(int(kept.count) for kept in self.learned.values())
            # They hold the widened weights, which would stay in memory beside the rounded ones.
            self.learned.clear()
            if not self.keep_best or self.state.best_step == self.state.step:
                return self.state.step
            for name, parameter in self.parameters.items():
                parameter.data.copy_(self.best[name])
            return self.state.best_step

    def _train(self) -> None:
        state, now = self.state, time.monotonic()
        start, self.due = now - state.seconds, now + CHECKPOINT_SECONDS
        if self._validation_is_due():
            self._validate(start)
        of_parameter = defaultdict(list)
        for matrix in self.learned:
            of_parameter[matrix.parameter].append(matrix)
        receivers = {
            p: partial(self._gather if m[0].block == OUTSIDE else self._update, m)
            for p, m in of_parameter.items()
        }
        left = self.budget.steps and self.budget.steps - state.step
        with gradients_to(receivers, self.model), blocks_recomputed(self.model):
            for batch in track(self._batches(start), self.name, left):
                if self.keep_best and state.best_step == state.step:
                    self.best = {
                        name: parameter.data.to(self.dtypes[name], copy=True)
                        for name, parameter in self.parameters.items()
                    }
                with interrupted_afterwards() if self.journal else nullcontext():
                    self.between_steps, began = False, time.monotonic()
                    state.losses.append(self._step(batch))
                    state.step += 1
                    state.tokens += batch.windows.numel()
                    state.step_seconds = time.monotonic() - began
                    state.seconds = time.monotonic() - start
                    if time.monotonic() >= self.due:
                        self._save()
                    self.between_steps = True
                if self._validation_is_due():
                    self._validate(start)
        if state.losses:
            self._validate(start)
        self._save()

    def _batches(self, start: float) -> Iterator[Batch]:
        """The batches until the budget is spent; at least one."""
        state, batches = self.state, self.batches(self.state.step)
        while True:
            ahead = state.step_seconds + state.validation_seconds
            spent = self.budget.spent(state.step, time.monotonic() - start + ahead)
            if state.step and spent >= 1:
                return
            yield next(batches)

    def _update(self, matrices: Sequence[Matrix], gradient: Tensor) -> None:
        state = self.state
        # At the middle of the step, so that neither the first nor the last has a rate of 0.
        ahead = state.validation_seconds + state.step_seconds / 2
        spent = self.budget.spent(state.step + 0.5, state.seconds + ahead)
        for matrix in matrices:
            self.learned[matrix].step(matrix.view(gradient), self.learning_rate * rate(spent))

    def _gather(self, matrices: Sequence[Matrix], gradient: Tensor) -> None:
        [table] = matrices
        earlier = self.gathered.get(table)
        self.gathered[table] = gradient if earlier is None else earlier.add_(gradient)

    def _step(self, batch: Batch) -> float:
        """One optimizer step; the loss before it."""
        windows, total, gradients = batch.windows.to(self.device), 0.0, []
        with fast_products(self.model, self.device):
            with first_token_apart(self.model):
                hidden, as_tuple = run_blocks(self.model, windows)
            for positions, inputs, logits in logits_in_chunks(
                self.model, windows, hidden, as_tuple
            ):
                part, gradient = batch.loss(positions, logits)
                total += float(part)
                logits.backward(gradient.div_(windows[:, 1:].numel()).to(logits.dtype))
                assert inputs.grad is not None
                gradients.append(inputs.grad)
        self._check(total)
        gradient = torch.zeros_like(hidden)
        gradient[:, :-1] = torch.cat(gradients, 1).view_as(gradient[:, :-1])
        hidden.backward(gradient)
        for table in list(self.gathered):
            self._update([table], self.gathered.pop(table))
        return total / windows[:, 1:].numel()

    def _validation_is_due(self) -> bool:
        """Whether the budget passed a boundary of its equal parts since the last validation."""
        if not self.state.curve:
            return True
        last, parts = self.state.curve[-1], self.validations
        now = self.budget.spent(self.state.step, self.state.seconds)
        return int(now * parts) > int(self.budget.spent(last.step, last.seconds) * parts)

    @torch.no_grad()
    def _validate(self, start: float) -> None:
        """Add a point to the learning curve."""
        state, total, count = self.state, 0.0, 0
        began = time.monotonic()
        for batch in self.validation():
            windows = batch.windows.to(self.device)
            with fast_products(self.model, self.device):
                for positions, _, logits in logits_in_chunks(
                    self.model, windows, *run_blocks(self.model, windows)
                ):
                    total += float(batch.loss(positions, logits)[0])
            count += windows[:, 1:].numel()
        self._check(total)
        loss = total / count
        train = sum(state.losses) / len(state.losses) if state.losses else None
        state.validation_seconds = time.monotonic() - began
        state.losses, state.seconds = [], time.monotonic() - start
        seconds = round(state.seconds, 2)
        state.curve.append(Point(state.step, seconds, state.tokens, train, loss))
        note(
            f"step {state.step}, {state.seconds:.0f} s: loss on held-out windows {loss:.4f}"
            + ("" if train is None else f", in training {train:.4f}")
        )

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise PrunerZeroError(
                f"the loss at step {self.state.step} is not finite: {self.remedy}"
            )

    def _save(self) -> None:
        """Write the state and its tensors to the journal, in place of those of an earlier step."""
        if self.journal is None or self.journal.finished == self.state.step:
            return
        began = time.monotonic()
        tensors = {}
        if self.keep_best and self.state.best_step != self.state.step:
            tensors = {f"{name}.best": values for name, values in self.best.items()}
        for kept in self.learned.values():
            tensors |= kept.state()
        lines = self.journal.lines
        file = f"state-{len(lines):06d}.safetensors"
        files = {file: write_tensors(self.journal.folder / file, tensors)}
        line = {"finished": self.state.step, "state": asdict(self.state), "tensors": file}
        self.journal.append(line, files, [lines[-1]["tensors"]] if lines else [])
        now = time.monotonic()
        self.due = now + CHECKPOINT_SECONDS * max(1.0, (now - began) / _QUICK)

    def _restore(self, journal: Journal) -> None:
        saved = TensorFile(journal.folder / journal.lines[-1]["tensors"])
        self.state = State.from_json(journal.lines[-1]["state"])
        for kept in self.learned.values():
            kept.restore(saved, self.state.step)
        if self.keep_best and self.state.best_step != self.state.step:
            self.best = {name: saved.read(f"{name}.best") for name in self.parameters}


def epochs(count: int, seed: int) -> Iterator[list[int]]:
    """The numbers below `count`, in another random order in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randperm(count, generator=generator).tolist()


def everything_in_float32(model: nn.Module, device: torch.device) -> bool:
    """Whether products with the untrained weights need them in float32 too."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return torch.float16 in dtypes or not has_fast_bfloat16(device)


@contextmanager
def float32_weights(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """`parameters` are float32 inside; afterwards each is rounded to its own dtype again."""
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C waits for the end of the work inside, and says so; a second one does not wait.

    In the main thread, the only one that a signal reaches.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def wait(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)
        note("interrupted: this step is finished and saved first; another Ctrl-C stops at once")

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
