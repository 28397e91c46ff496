"""G block by block: no graph longer than a block, no gradient kept beyond its block.

One forward pass leaves the input of every block on disk. The loss is taken from the last one's
output, and its gradient handed back block by block: each is computed again from its input, and
its weights' gradients folded into G before the block before it is read.
"""

import shutil
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration.gradients import (
    GradientSums,
    check_gradients,
    only_these_learn,
)
from pruner_zero.calibration.store import StatisticsStore, cache_key
from pruner_zero.calibration.window_file import WindowFile
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.models import (
    BlockCalls,
    LanguageModel,
    blocks_replaced,
    find_blocks,
    find_matrices,
    next_token_loss,
    run_block,
)
from pruner_zero.progress import SILENT, Progress


def store_gradients(
    language_model: LanguageModel,
    windows: Tensor,
    store: StatisticsStore,
    *,
    progress: Progress = SILENT,
) -> None:
    """Fill `store` with G of every matrix over `windows` (n, tokens): what `collect_gradients`
    finds, to the last bit, with one block in memory at a time.

    It goes on after the last finished block of an interrupted call on the same store. On disk
    it needs the inputs of all blocks besides G. Raises what `collect_gradients` raises.
    """
    _Pass(language_model, windows, store, progress).run()


class _Pass:
    """The forward steps, one step at the head, the backward steps; each durable once done."""

    def __init__(
        self,
        language_model: LanguageModel,
        windows: Tensor,
        store: StatisticsStore,
        progress: Progress,
    ) -> None:
        self.language_model = language_model
        self.windows = windows
        self.store = store
        self.progress = progress
        self.depth = len(find_blocks(language_model.model))
        self.matrices = find_matrices(language_model.model)
        self.folder = store.folder / "gradients.partial"
        check_gradients(self.matrices)

    def run(self) -> None:
        journal = open_journal(self.folder, self.store.settings)
        done = len(journal.lines)
        if done:
            self.progress.note(f"going on with the gradients after step {done} in {self.folder}")
        calls = self._calls(keep=done == 0)
        for index in self.progress.track(range(done, self.depth), "forward"):
            self._forward(journal, calls, index)
        if len(journal.lines) == self.depth:
            self._loss(journal, calls)
        finished = len(journal.lines) - self.depth - 1
        order = range(self.depth - 1 - finished, -1, -1)
        for index in self.progress.track(order, "gradients"):
            self._backward(journal, calls, index)
        digests = {line["block"]: line["G"] for line in reversed(journal.lines) if "G" in line}
        self.store.commit("G", digests)
        journal.discard()

    def _calls(self, keep: bool) -> BlockCalls:
        nothing: deque[Tensor] = deque(maxlen=0)
        inputs = self._file("inputs", 0) if keep else nothing
        return self.language_model.block_calls(self.windows, inputs)

    def _forward(self, journal: Journal, calls: BlockCalls, index: int) -> None:
        inputs = calls.hidden if index == 0 else self._opened("inputs", index)
        outputs = self._file("inputs", index + 1)
        with torch.no_grad(), self.language_model.block(index) as block:
            for incoming, arguments in zip(inputs, calls.arguments[index], strict=True):
                outputs.append(run_block(block, incoming, arguments))
        files = {outputs.path.name: outputs.sha256}
        if index == 0:
            assert isinstance(inputs, WindowFile)
            files[inputs.path.name] = inputs.sha256
        journal.append({"block": index}, files)

    def _loss(self, journal: Journal, calls: BlockCalls) -> None:
        outputs = self._opened("inputs", self.depth)
        gradients = self._file("gradients", self.depth)
        model = self.language_model.model
        with self.language_model.outside(), torch.enable_grad(), only_these_learn(model, ()):
            for window, hidden in self.progress.track(
                zip(self.windows, outputs, strict=True), "loss", len(self.windows)
            ):
                hidden = hidden.to(self.language_model.device).requires_grad_()
                with blocks_replaced(model, hidden, calls.as_tuple):
                    next_token_loss(model, window[None]).backward()
                assert hidden.grad is not None
                gradients.append(hidden.grad)
        journal.append({"loss": True}, {gradients.path.name: gradients.sha256}, [outputs.path.name])

    def _backward(self, journal: Journal, calls: BlockCalls, index: int) -> None:
        own = [matrix for matrix in self.matrices if matrix.block == index]
        inputs, incoming = self._opened("inputs", index), self._opened("gradients", index + 1)
        outgoing = self._file("gradients", index) if index else None
        with self.language_model.block(index) as block, ExitStack() as stack:
            # Only now are the parameters where their gradients will be.
            sums = GradientSums(own)
            stack.enter_context(sums.collecting(block))
            for hidden, gradient, arguments in zip(
                inputs, incoming, calls.arguments[index], strict=True
            ):
                hidden.requires_grad_(outgoing is not None)
                output = run_block(block, hidden, arguments)
                if output.requires_grad:
                    output.backward(gradient.to(output.device))
                if outgoing is not None:
                    assert hidden.grad is not None
                    outgoing.append(hidden.grad)
        digest = write_gradients(self.store, index, sums.result(), self.progress)
        files = {f"../{self.store.file('G', index).name}": digest}
        if outgoing is not None:
            files[outgoing.path.name] = outgoing.sha256
        journal.append({"block": index, "G": digest}, files, [inputs.path.name, incoming.path.name])

    def _file(self, kind: str, index: int) -> WindowFile:
        return WindowFile(self._path(kind, index), len(self.windows))

    def _opened(self, kind: str, index: int) -> WindowFile:
        return WindowFile.open(self._path(kind, index))

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:04d}.safetensors"


def write_gradients(
    store: StatisticsStore, block: int, found: dict[str, Tensor], progress: Progress
) -> str:
    """Store G of one block, telling of matrices that no gradient reached; its checksum."""
    silent = [name for name, G in found.items() if not G.any()]
    if silent:
        progress.note(f"no gradient reaches {', '.join(silent)}: G is zero there")
    return store.write("G", block, found)


def open_journal(folder: Path, settings: Mapping[str, Any]) -> Journal:
    """The steps of an interrupted pass over a dense model; none where they are damaged."""
    run = cache_key(settings)
    try:
        return Journal(folder, run)
    except PrunerZeroError:
        shutil.rmtree(folder, ignore_errors=True)
    return Journal(folder, run)
