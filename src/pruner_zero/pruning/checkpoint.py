"""What the journal of an unfinished pruning holds: a line and a file of weights for each block.

The activations between two blocks are there for an offloaded model alone: a model in memory
computes them again from its weights.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruner_zero.calibration.walk import Stream, Walk, WindowFile
from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import Activations
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.pruning.matrix import MatrixRecord
from pruner_zero.tensor_file import TensorFile, write_tensors


class FinishedBlocks:
    """The finished blocks of a run: kept in a journal, or nowhere.

    Raises ValueError for an offloaded model without a journal.
    """

    def __init__(self, language_model: LanguageModel, journal: Journal | None) -> None:
        if language_model.on_disk and journal is None:
            raise ValueError("an offloaded model needs a journal to be pruned into")
        self.language_model, self.journal = language_model, journal
        self.count = journal.finished if journal else 0

    @property
    def records(self) -> list[MatrixRecord]:
        """The records of all matrices of the finished blocks."""
        lines = self.journal.lines if self.journal else []
        return [MatrixRecord.from_json(record) for line in lines for record in line["records"]]

    def decide(self, name: str, judge: Callable[[], Any]) -> Any:
        """What `judge` gives, as JSON values; what it gave at the first start of the run."""
        return self.journal.decide(name, judge) if self.journal else judge()

    def carry(self, walk: Walk, windows: int, *, fast: bool, dense: bool = False) -> Stream:
        """The activations of the pruned model, or of the `dense` one, in a walk that goes on.

        Those of the dense model are taken through the finished blocks, which are dense then. Those
        of the pruned model are on disk after the finished blocks for an offloaded model, and before
        the first block for a model in memory.
        """
        journal, storage, before = self.journal, None, None
        if journal and self.language_model.on_disk:
            new = _new_dense_activations if dense else _new_activations
            storage = lambda index: new(journal, index - 1, windows)  # noqa: E731
            before = None if dense else _last_activations(journal)
        stream = walk.carry(storage, before, fast=fast)
        if dense:
            self._advance(stream)
        return stream

    def restore(self) -> None:
        """Copy the finished blocks' weights into a model that is in memory."""
        if not self.journal or self.language_model.on_disk:
            return
        parameters = dict(self.language_model.model.named_parameters())
        for path in weight_files(self.journal):
            file = TensorFile(path)
            for name in file:
                parameters[name].data.copy_(file.read(name))

    def catch_up(self, pruned: Stream) -> None:
        """Take the activations of a pruned model in memory through its finished blocks."""
        if not self.language_model.on_disk:
            self._advance(pruned)

    def _advance(self, stream: Stream) -> None:
        for index in range(self.count):
            with self.language_model.block(index) as block:
                stream.advance(block, index)

    def commit(
        self,
        weights: Mapping[str, Tensor],
        records: Sequence[MatrixRecord],
        hidden: Activations | None,
    ) -> None:
        """Record the next block as finished: its weights, and its outputs if they are on disk."""
        journal, block = self.journal, self.count
        self.count += 1
        if journal is None:
            return
        path = journal.folder / f"weights-{block:04d}.safetensors"
        files = {path.name: write_tensors(path, weights, {"format": "pt"})}
        file = hidden if isinstance(hidden, WindowFile) else None
        if file is not None:
            files[file.path.name] = file.sha256
        line = {
            "block": block,
            "weights": path.name,
            "hidden": None if file is None else file.path.name,
            "records": [record.to_json() for record in records],
        }
        journal.append(line, files, [_hidden(journal, block - 1).name])


def weight_files(journal: Journal, trained: int = 0) -> list[Path]:
    """The files of the finished blocks' weights, in order.

    trained: of an offloaded model the steps of training that followed.
    """
    if trained:
        folder = training_folder(journal, trained)
        return [folder / f"block-{index:04d}.safetensors" for index in range(len(journal.lines))]
    return [journal.folder / line["weights"] for line in journal.lines]


def training_folder(journal: Journal, steps: int) -> Path:
    """Where a training of the whole model keeps what it needs to go on."""
    return journal.folder / f"training-{steps}"


@contextmanager
def whole_model(
    language_model: LanguageModel, journal: Journal | None, steps: int
) -> Iterator[nn.Module]:
    """The pruned model in memory, to be trained in place for that many `steps`.

    Where it is on disk, the blocks are read from the journal's files, and afterwards written to
    those that `weight_files` names.
    """
    if journal is None or not language_model.on_disk:
        yield language_model.model
        return
    folder = training_folder(journal, steps) / "pruned"
    shutil.rmtree(folder, ignore_errors=True)
    with language_model.whole(weight_files(journal), folder) as whole:
        yield whole.model
        for index, path in enumerate(weight_files(journal, steps)):
            write_tensors(path, whole.changed(index, ()), {"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)


def _last_activations(journal: Journal) -> WindowFile | None:
    """The input of the next block; None where no block has left it on disk."""
    name = journal.lines[-1]["hidden"] if journal.lines else None
    return WindowFile.open(journal.folder / name) if name else None


def _new_activations(journal: Journal, block: int, windows: int) -> WindowFile:
    """A new file for the output of `block`; −1 stands for the embeddings."""
    return WindowFile(_hidden(journal, block), windows)


def _new_dense_activations(journal: Journal, block: int, windows: int) -> WindowFile:
    """A new file for the dense model's output of `block`; older files are deleted."""
    for path in journal.folder.glob("dense-*.safetensors"):
        if path.name != f"dense-{block - 1:04d}.safetensors":
            path.unlink(missing_ok=True)
    return WindowFile(journal.folder / f"dense-{block:04d}.safetensors", windows)


def _hidden(journal: Journal, block: int) -> Path:
    name = f"hidden-{block:04d}" if block >= 0 else "hidden-first"
    return journal.folder / f"{name}.safetensors"
