"""Checkpoints of an unfinished recovery: an interrupted training resumes from the last one."""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pruner_zero.result_folder import RunCheckpoint
from pruner_zero.tensor_file import write_tensors

Tensors = Mapping[str, Tensor]


class Checkpoint(RunCheckpoint):
    """The last state of a run under `folder`: a journal, and the tensors that its last line names.

    A state is durable once its journal line is on disk.
    """

    name, step = "training", "step"

    @property
    def finished(self) -> int:
        """The number of steps before the last committed state."""
        return self.last["step"] if self.last else 0

    @property
    def last(self) -> dict[str, Any] | None:
        """The last committed state, None before the first."""
        return self.lines[-1]["state"] if self.lines else None

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The tensors of the last state: "weights", "moments" or "best"; empty where none are."""
        name = self.lines[-1]["tensors"].get(kind)
        return load_file(self.folder / name) if name else {}

    def commit(
        self,
        state: Mapping[str, Any],
        weights: Tensors,
        moments: Tensors,
        best: Tensors | None,
        best_step: int,
    ) -> None:
        """Make a state durable, then delete files that only the previous state used.

        best: the weights of step `best_step`, written only if they changed.
        """
        before: dict[str, str] = self.lines[-1]["tensors"] if self.lines else {}
        wanted = {"weights": (weights, state["step"]), "moments": (moments, state["step"])}
        if best is not None:
            wanted["best"] = (best, best_step)
        names, files = {}, {}
        for kind, (tensors, step) in wanted.items():
            names[kind] = f"{kind}-{step:08d}.safetensors"
            if before.get(kind) != names[kind]:
                files[names[kind]] = write_tensors(self.folder / names[kind], tensors)
        unneeded = set(before.values()) - set(names.values())
        self.append({"state": dict(state), "tensors": names}, files, sorted(unneeded))
