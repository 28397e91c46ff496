"""Backward, block by block: for a model that stays on disk.

One forward pass writes the input of every block to disk. The loss is taken from the last block's
output, and its gradient is passed back block by block: each block is computed again from its
input, and its gradients are folded into the statistics before the block before it is read. No
graph is longer than a block, and no gradient is kept beyond its block.
"""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pruner_zero.calibration.calibrate import Digests, StatisticsStore
from pruner_zero.calibration.gradients import GradientSums, check_gradients, window_losses
from pruner_zero.calibration.statistics import (
    GradientStatistic,
    Kind,
    MaskPriceStatistic,
    OutputGradientStatistic,
    PriceStatistic,
    select,
    windows_needed,
)
from pruner_zero.calibration.walk import Stream, Walk, WindowFile
from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import Activations, blocks_replaced, run_block
from pruner_zero.models.couplings import head_slices
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.models.next_token import gradients_to
from pruner_zero.models.transformers_private import experts_one_by_one
from pruner_zero.progress import note, track


class OffloadedGradients:
    """The statistics that `collect_gradients` gives, to the last bit, of an offloaded model.

    All `statistics` are of one loss.
    Forward steps, one step at the head, backward steps: each is durable once done, and `run` goes
    on after the last finished step of an interrupted call on the same store. Beside the
    statistics, the disk holds the inputs of all blocks. Raises what `collect_gradients` raises.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        windows: Tensor,
        statistics: Mapping[Kind, GradientStatistic],
        store: StatisticsStore,
    ) -> None:
        self.language_model = language_model
        self.windows = windows[: windows_needed(statistics, *windows.shape)]
        self.statistics = statistics
        self.store = store
        self.depth = len(find_blocks(language_model.model))
        self.matrices = find_matrices(language_model.model)
        check_gradients(self.matrices)
        self.slices = head_slices(language_model.model)
        settings = {**store.settings, "kinds": list(statistics)}
        folder = store.folder / "gradients.partial"
        self.journal = Journal(folder, settings, overwrite=True)

    def run(self) -> Digests:
        """Write the statistics of all blocks; their checksums by kind and block."""
        model, done = self.language_model.model, len(self.journal.lines)
        if done:
            note(f"going on with the gradients after step {done} in {self.journal.folder}")
        # Experts run as in the backward pass, so that blocks get the inputs of that pass.
        observed = [
            *select(OutputGradientStatistic, self.statistics),
            *select(PriceStatistic, self.statistics),
            *select(MaskPriceStatistic, self.statistics),
        ]
        with experts_one_by_one(model) if observed else nullcontext():
            walk = Walk(self.language_model, self.windows)
            # Where the forward pass is finished, its inputs are opened one after the other.
            hidden: Activations | None = [] if done else None
            if 0 < done < self.depth:
                hidden = self._opened("inputs", done)
            stream = walk.carry(lambda index: self._file("inputs", index), hidden)
            for index, block in walk.blocks("forward", done):
                self._forward(stream, block, index)
            if len(self.journal.lines) == self.depth:
                self._loss(stream)
            finished = len(self.journal.lines) - self.depth - 1
            order = range(self.depth - 1 - finished, -1, -1)
            for index in track(order, "gradients"):
                self._backward(stream, index)
        written = [line for line in reversed(self.journal.lines) if "digests" in line]
        return {
            kind: {line["block"]: line["digests"][kind] for line in written}
            for kind in self.statistics
        }

    def _forward(self, stream: Stream, block: nn.Module, index: int) -> None:
        inputs = stream.hidden
        with torch.no_grad():
            stream.advance(block, index)
        written = [stream.hidden] if index else [inputs, stream.hidden]
        files = {file.path.name: file.sha256 for file in written if isinstance(file, WindowFile)}
        self.journal.append({"block": index}, files)

    def _loss(self, stream: Stream) -> None:
        outputs = self._opened("inputs", self.depth)
        gradients = self._file("gradients", self.depth)
        model = self.language_model.model
        with self.language_model.outside(), gradients_to({}, model):
            losses = window_losses(model, self.windows, self.statistics)
            for hidden in track(outputs, "loss", len(self.windows)):
                hidden = hidden.to(self.language_model.device).requires_grad_()
                with blocks_replaced(model, hidden, stream.as_tuple):
                    next(losses).backward()
                assert hidden.grad is not None
                gradients.append(hidden.grad)
        files = {gradients.path.name: gradients.sha256}
        self.journal.append({"loss": True}, files, [outputs.path.name])

    def _backward(self, stream: Stream, index: int) -> None:
        matrices = [matrix for matrix in self.matrices if matrix.block == index]
        inputs, incoming = self._opened("inputs", index), self._opened("gradients", index + 1)
        outgoing = self._file("gradients", index) if index else None
        with self.language_model.block(index) as block, ExitStack() as stack:
            # The sums are made here because only now are the parameters on their device.
            tokens = self.windows.shape[1]
            pilot = select(MaskPriceStatistic, self.statistics)
            norms = self.store.read("X", index) if pilot else {}
            sums = GradientSums(matrices, self.statistics, self.slices, tokens, norms)
            stack.enter_context(sums.collecting(block, {index: block}))
            for hidden, gradient, arguments in zip(
                inputs, incoming, stream.arguments[index], strict=True
            ):
                hidden.requires_grad_(outgoing is not None)
                output = run_block(block, hidden, arguments)
                if output.requires_grad:
                    output.backward(gradient.to(output.device))
                if outgoing is not None:
                    assert hidden.grad is not None
                    outgoing.append(hidden.grad)
        digests = self.store.write_block(index, sums.result(len(self.windows)), self.statistics)
        files = {f"../{self.store.file(kind, index).name}": digests[kind] for kind in digests}
        if outgoing is not None:
            files[outgoing.path.name] = outgoing.sha256
        line = {"block": index, "digests": digests}
        self.journal.append(line, files, [inputs.path.name, incoming.path.name])

    def _file(self, name: str, index: int) -> WindowFile:
        return WindowFile(self._path(name, index), len(self.windows))

    def _opened(self, name: str, index: int) -> WindowFile:
        return WindowFile.open(self._path(name, index))

    def _path(self, name: str, index: int) -> Path:
        return self.journal.folder / f"{name}-{index:04d}.safetensors"
