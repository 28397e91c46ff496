"""An unfinished run on disk, so that an interruption costs at most one block."""

import json
import shutil
from collections.abc import Sequence
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import append_line, read_lines, save_tensors, sha256, writing
from pruner_zero.models import Matrix
from pruner_zero.pruning.record import MatrixRecord

JOURNAL = "journal.jsonl"


class Checkpoint:
    """Finished blocks under `folder`: a journal, one file of weights a block, and the activations.

    A block counts once its journal line is on disk; the files it names are written before,
    and carry their checksums there. `run` identifies the settings. Raises PrunerZeroError
    for a folder that belongs to other settings and for a damaged one.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            lines = read_lines(folder / JOURNAL)
        except PrunerZeroError as error:
            raise self._damaged(JOURNAL) from error
        if lines and lines[0].get("run") != run:
            if len(lines) > 1:
                raise PrunerZeroError(
                    f"{folder} holds an unfinished run with other settings: finish that run, "
                    "or discard it with --overwrite"
                )
            # It was stopped before its first block, so nothing is lost with it.
            (folder / JOURNAL).unlink()
            lines = []
        if not lines:
            append_line(folder / JOURNAL, {"run": run})
        self.lines: list[dict[str, Any]] = lines[1:]
        self._check()

    @property
    def finished(self) -> int:
        """How many blocks are done."""
        return len(self.lines)

    def restore(self, matrices: Sequence[Matrix]) -> list[MatrixRecord]:
        """Put the finished blocks' weights back into the model; return their records."""
        parameters = {matrix.parameter_name: matrix.parameter for matrix in matrices}
        for line in self.lines:
            for name, tensor in load_file(self.folder / line["weights"]["file"]).items():
                parameters[name].data.copy_(tensor)
        return [MatrixRecord.from_json(one) for line in self.lines for one in line["records"]]

    def hidden(self) -> list[Tensor] | None:
        """The input of the next block, a tensor a window, where the run keeps it."""
        if not self.lines or self.lines[-1]["hidden"] is None:
            return None
        stacked = load_file(self.folder / self.lines[-1]["hidden"]["file"])["hidden"]
        # Cloned: matrix products may round differently where memory is aligned differently,
        # and a resumed run is to end with the same bytes.
        return [window[None].clone() for window in stacked]

    def commit(
        self,
        matrices: Sequence[Matrix],
        records: Sequence[MatrixRecord],
        hidden: Sequence[Tensor] | None,
    ) -> None:
        """Make one more block durable: its weights, and the input of the block after it."""
        block = self.finished
        weights = {matrix.parameter_name: matrix.parameter.data for matrix in matrices}
        line = {
            "block": block,
            "weights": self._save(f"weights-{block:04d}.safetensors", weights),
            "hidden": hidden
            and self._save(f"hidden-{block:04d}.safetensors", {"hidden": torch.cat(list(hidden))}),
            "records": [record.to_json() for record in records],
        }
        line["sha256"] = _digest(line)
        append_line(self.folder / JOURNAL, line)
        self.lines.append(line)
        (self.folder / f"hidden-{block - 1:04d}.safetensors").unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget the run: its journal goes first, so that no half of it can be taken up again."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, name: str, tensors: dict[str, Tensor]) -> dict[str, str]:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        return {"file": name, "sha256": save_tensors(self.folder / name, contiguous)}

    def _check(self) -> None:
        for number, line in enumerate(self.lines):
            given = {key: value for key, value in line.items() if key != "sha256"}
            if line.get("sha256") != _digest(given):
                raise self._damaged(JOURNAL)
            files = [line["weights"]]
            if line["hidden"] and number == len(self.lines) - 1:
                files.append(line["hidden"])
            for one in files:
                path = self.folder / one["file"]
                if not path.is_file() or sha256(path) != one["sha256"]:
                    raise self._damaged(one["file"])

    def _damaged(self, name: str) -> PrunerZeroError:
        return PrunerZeroError(
            f"{self.folder / name} is damaged: start the unfinished run again with --overwrite"
        )


def _digest(line: dict[str, Any]) -> str:
    return new_sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()
