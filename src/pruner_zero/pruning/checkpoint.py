"""The checkpoint of an unfinished run: an interruption costs at most one block."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pruner_zero.calibration import WindowFile
from pruner_zero.models import Matrix, parameters_of
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.result_folder import RunCheckpoint
from pruner_zero.tensor_file import TensorFile, write_tensors


class Checkpoint(RunCheckpoint):
    """Finished blocks under `folder`: a journal and a file of weights for each.

    A block is finished once its journal line is on disk. The activations between two blocks are
    there for an offloaded model alone: a model in memory computes them again from its weights.
    """

    name, step = "blocks", "block"

    def records(self) -> list[MatrixRecord]:
        """The records of all matrices of the finished blocks."""
        lines = self.lines
        return [MatrixRecord.from_json(record) for line in lines for record in line["records"]]

    def weights(self) -> list[Path]:
        """The files of the finished blocks' weights, in order."""
        return [self.folder / line["weights"] for line in self.lines]

    def restore(self, matrices: Sequence[Matrix]) -> None:
        """Copy the finished blocks' weights into a model that is in memory."""
        parameters = parameters_of(matrices)
        for path in self.weights():
            file = TensorFile(path)
            for name in file:
                parameters[name].data.copy_(file.read(name))

    def hidden(self) -> WindowFile | None:
        """The input of the next block; None where no block has left it on disk."""
        name = self.lines[-1]["hidden"] if self.lines else None
        return WindowFile.open(self.folder / name) if name else None

    def activations(self, block: int, windows: int) -> WindowFile:
        """A new file for the output of `block`; −1 stands for the embeddings."""
        return WindowFile(self._hidden(block), windows)

    def dense_activations(self, block: int, windows: int) -> WindowFile:
        """A new file for the dense model's output of `block`; older files are deleted."""
        for path in self.folder.glob("dense-*.safetensors"):
            if path.name != f"dense-{block - 1:04d}.safetensors":
                path.unlink(missing_ok=True)
        return WindowFile(self.folder / f"dense-{block:04d}.safetensors", windows)

    def commit(
        self,
        weights: Mapping[str, Tensor],
        records: Sequence[MatrixRecord],
        hidden: WindowFile | None,
    ) -> None:
        """Record a finished block: its weights, and the input of the next block if on disk."""
        block = self.finished
        path = self.folder / f"weights-{block:04d}.safetensors"
        files = {path.name: write_tensors(path, weights, {"format": "pt"})}
        if hidden is not None:
            files[hidden.path.name] = hidden.sha256
        line = {
            "block": block,
            "weights": path.name,
            "hidden": None if hidden is None else hidden.path.name,
            "records": [record.to_json() for record in records],
        }
        self.append(line, files, [self._hidden(block - 1).name])

    def _hidden(self, block: int) -> Path:
        name = f"hidden-{block:04d}" if block >= 0 else "hidden-first"
        return self.folder / f"{name}.safetensors"
