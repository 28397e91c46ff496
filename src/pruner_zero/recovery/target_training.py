"""Training in little memory towards the predictions of a model that is not there any more."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from pruner_zero.calibration.gradients import gradients_to
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models.blocks import blocks_recomputed, run_blocks
from pruner_zero.models.loss import fast_products
from pruner_zero.models.structure import Matrix
from pruner_zero.progress import note, track
from pruner_zero.pruning.method import Point
from pruner_zero.recovery.factored import FactoredMatrix
from pruner_zero.recovery.targets import (
    Target,
    Targets,
    divergence,
    logits_in_chunks,
)
from pruner_zero.recovery.train import State, rate
from pruner_zero.tensor_file import TensorFile, write_tensors

# The highest learning rate, as a share of the root mean square of each matrix.
RATE = 1e-3
# A checkpoint has 4 bytes a weight, zeros included.
CHECKPOINT_SECONDS = 300.0


class TargetTraining:
    """Trains the kept weights of `matrices` of `model`, their zeros kept, towards `targets`.

    The trained weights are float32. Each step takes the windows of `tokens` (n, seqlen) that have
    the numbers of the next of `batches`; the loss is also measured on those of `validation`, before
    and after. journal: where the run is saved and resumed from. The model stays in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        targets: Targets,
        batches: Sequence[Sequence[int]],
        validation: Sequence[int],
        matrices: Sequence[Matrix],
        journal: Journal | None,
    ) -> None:
        self.model, self.tokens, self.targets = model, tokens, targets
        self.batches, self.validation, self.journal = batches, validation, journal
        self.learned = {matrix: FactoredMatrix(matrix.name, matrix.weight) for matrix in matrices}
        self.state = State()

    def run(self) -> Sequence[Point]:
        """Train in place, on from the last checkpoint; the learning curve."""
        state, journal = self.state, self.journal
        if journal and journal.lines:
            state = self.state = self._restored(journal)
        saved = time.monotonic()
        start = saved - state.seconds
        if not state.curve:
            self._validate(start)
        left = self.batches[state.step :]
        of_parameter: dict[nn.Parameter, list[Matrix]] = {}
        for matrix in self.learned:
            of_parameter.setdefault(matrix.parameter, []).append(matrix)
        receivers = {p: partial(self._update, matrices) for p, matrices in of_parameter.items()}
        with gradients_to(receivers, self.model), blocks_recomputed(self.model):
            for numbers in track(left, "distillation", len(left)):
                state.losses.append(self._step(numbers))
                state.step += 1
                state.seconds = time.monotonic() - start
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
        if state.losses:
            self._validate(start)
        if left:
            self._save()
        return state.curve

    def _update(self, matrices: Sequence[Matrix], gradient: Tensor) -> None:
        # At the middle of the step, so that neither the first nor the last has a rate of 0.
        share = RATE * rate((self.state.step + 0.5) / len(self.batches))
        for matrix in matrices:
            self.learned[matrix].step(matrix.view(gradient), share)

    def _step(self, numbers: Sequence[int]) -> float:
        """One step on the windows `numbers`; their loss before it.

        Each parameter is changed during the backward pass, as soon as its gradient is complete and
        the weights are not needed any more, so that no two gradients are in memory.
        """
        windows, target = self._batch(numbers)
        with fast_products(self.model, windows.device):
            hidden, as_tuple = run_blocks(self.model, windows)
            loss, gradients = 0.0, []
            for positions, inputs, logits in logits_in_chunks(
                self.model, windows, hidden, as_tuple
            ):
                part, gradient = divergence(logits, target.part(positions))
                loss += float(part)
                logits.backward(gradient.div_(len(target.tokens)).to(logits.dtype))
                assert inputs.grad is not None
                gradients.append(inputs.grad)
        self._check(loss)
        gradient = torch.zeros_like(hidden)
        gradient[:, :-1] = torch.cat(gradients, 1).view_as(gradient[:, :-1])
        hidden.backward(gradient)
        return loss / len(target.tokens)

    @torch.no_grad()
    def _validate(self, start: float) -> None:
        """Add a point to the learning curve: the loss on the windows that are not trained on."""
        state, total, positions = self.state, 0.0, 0
        for number in self.validation:
            windows, target = self._batch([number])
            with fast_products(self.model, windows.device):
                for part, _, logits in logits_in_chunks(
                    self.model, windows, *run_blocks(self.model, windows)
                ):
                    total += float(divergence(logits, target.part(part))[0])
            positions += len(target.tokens)
        self._check(total)
        loss = total / positions
        train = sum(state.losses) / len(state.losses) if state.losses else None
        state.losses, state.seconds = [], time.monotonic() - start
        seen = state.step and self.tokens.shape[1] * sum(map(len, self.batches[: state.step]))
        state.curve.append(Point(state.step, round(state.seconds, 2), seen, train, loss))
        note(
            f"step {state.step}, {state.seconds:.0f} s: divergence on held-out windows {loss:.4f}"
            + ("" if train is None else f", in training {train:.4f}")
        )

    def _batch(self, numbers: Sequence[int]) -> tuple[Tensor, Target]:
        device = next(self.model.parameters()).device
        return self.tokens[list(numbers)].to(device), self.targets.of(numbers)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise PrunerZeroError(
                f"the loss at step {self.state.step} is not finite: leave out the distillation, by "
                "--distill 0 or without +distill=N"
            )

    def _save(self) -> None:
        """Write the state and its tensors to the journal, and delete those of the state before."""
        if self.journal is None:
            return
        tensors = {
            name: tensor for kept in self.learned.values() for name, tensor in kept.state().items()
        }
        lines = self.journal.lines
        file = f"state-{len(lines):06d}.safetensors"
        files = {file: write_tensors(self.journal.folder / file, tensors)}
        line = {"finished": self.state.step, "state": asdict(self.state), "tensors": file}
        self.journal.append(line, files, [lines[-1]["tensors"]] if lines else [])

    def _restored(self, journal: Journal) -> State:
        line = journal.lines[-1]
        saved = TensorFile(journal.folder / line["tensors"])
        state = State.from_json(line["state"])
        for kept in self.learned.values():
            kept.restore(saved, state.step)
        return state
