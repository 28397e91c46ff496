"""What the journal of an unfinished pruning holds: a line and a file of weights for each block.

The activations between two blocks are there for an offloaded model alone: a model in memory
computes them again from its weights.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from pruner_zero.calibration.walk import WindowFile
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.pruning.matrix import MatrixRecord
from pruner_zero.tensor_file import TensorFile, write_tensors


def commit_block(
    journal: Journal,
    weights: Mapping[str, Tensor],
    records: Sequence[MatrixRecord],
    hidden: WindowFile | None,
) -> None:
    """Record a finished block: its weights, and the input of the next block if on disk."""
    block = journal.finished
    path = journal.folder / f"weights-{block:04d}.safetensors"
    files = {path.name: write_tensors(path, weights, {"format": "pt"})}
    if hidden is not None:
        files[hidden.path.name] = hidden.sha256
    line = {
        "block": block,
        "weights": path.name,
        "hidden": None if hidden is None else hidden.path.name,
        "records": [record.to_json() for record in records],
    }
    journal.append(line, files, [_hidden(journal, block - 1).name])


def finished_records(journal: Journal) -> list[MatrixRecord]:
    """The records of all matrices of the finished blocks."""
    lines = journal.lines
    return [MatrixRecord.from_json(record) for line in lines for record in line["records"]]


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


def restore_blocks(journal: Journal, model: nn.Module) -> None:
    """Copy the finished blocks' weights into a model that is in memory."""
    parameters = dict(model.named_parameters())
    for path in weight_files(journal):
        file = TensorFile(path)
        for name in file:
            parameters[name].data.copy_(file.read(name))


def last_activations(journal: Journal) -> WindowFile | None:
    """The input of the next block; None where no block has left it on disk."""
    name = journal.lines[-1]["hidden"] if journal.lines else None
    return WindowFile.open(journal.folder / name) if name else None


def new_activations(journal: Journal, block: int, windows: int) -> WindowFile:
    """A new file for the output of `block`; −1 stands for the embeddings."""
    return WindowFile(_hidden(journal, block), windows)


def new_dense_activations(journal: Journal, block: int, windows: int) -> WindowFile:
    """A new file for the dense model's output of `block`; older files are deleted."""
    for path in journal.folder.glob("dense-*.safetensors"):
        if path.name != f"dense-{block - 1:04d}.safetensors":
            path.unlink(missing_ok=True)
    return WindowFile(journal.folder / f"dense-{block:04d}.safetensors", windows)


def _hidden(journal: Journal, block: int) -> Path:
    name = f"hidden-{block:04d}" if block >= 0 else "hidden-first"
    return journal.folder / f"{name}.safetensors"
