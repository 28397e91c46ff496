"""The dense model's predictions for windows, written once before its weights change."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pruner_zero.calibration.walk import Walk, WindowFile
from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import Activations
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.next_token import fast_products, in_float32
from pruner_zero.progress import track
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.translation import Translation
from pruner_zero.training.targets import Target, target_of

_FILE = "targets.safetensors"


class Targets:
    """The targets of windows by their number, in memory or in a file: 3 KiB a token."""

    def __init__(self, numbers: Sequence[int], read: Callable[[str, int], Tensor]) -> None:
        self._rows = {number: row for row, number in enumerate(numbers)}
        self._read = read

    def of(self, numbers: Sequence[int]) -> Target:
        """Those of the windows `numbers`, one after the other, each without its last position."""
        rows = [self._rows[number] for number in numbers]
        return Target(*(torch.cat([self._read(n, row)[0] for row in rows]) for n in Target._fields))


@torch.no_grad()
def write_targets(
    dense: LanguageModel,
    tokens: Tensor,
    numbers: Sequence[int],
    journal: Journal | None = None,
    translation: Translation | None = None,
) -> Targets:
    """The targets of the windows `numbers` of `tokens` (n, seqlen), in a file of the `journal`.

    A finished file is used again. An offloaded model needs a journal, where the activations between
    two of its blocks are. translation: to a tokenizer with fewer tokens, in which the targets are.
    """
    if journal and journal.lines:
        return Targets(numbers, TensorFile(journal.folder / _FILE).read)
    model, chosen = dense.model, tokens[list(numbers)]
    found = []
    with fast_products(model, dense.device), in_float32(model):
        states, as_tuple = _last_states(dense, chosen, journal)
        with dense.outside(), in_float32(model):
            for window, hidden in zip(
                track(chosen, "predictions", len(chosen)), states, strict=True
            ):
                seen = window[None].to(dense.device)
                found.append(target_of(model, seen, hidden, as_tuple, translation))
    stored = {name: torch.stack([getattr(each, name) for each in found]) for name in Target._fields}
    if journal is None:
        return Targets(numbers, lambda name, row: stored[name][row, None])
    files = {_FILE: write_tensors(journal.folder / _FILE, stored)}
    journal.append({}, files, [path.name for path in journal.folder.glob("hidden-*")])
    return Targets(numbers, TensorFile(journal.folder / _FILE).read)


def _last_states(
    dense: LanguageModel, windows: Tensor, journal: Journal | None
) -> tuple[Activations, bool]:
    """The last block's outputs for `windows`, on disk for a model on disk, and `as_tuple`."""
    files: list[WindowFile] = []

    def storage(index: int) -> WindowFile:
        assert journal is not None
        # The block before it has read the input that is two files back.
        for file in files[:-1]:
            file.path.unlink(missing_ok=True)
        files.append(WindowFile(journal.folder / f"hidden-{index:04d}.safetensors", len(windows)))
        return files[-1]

    walk = Walk(dense, windows)
    stream = walk.carry(storage if dense.on_disk else None)
    for index, block in walk.blocks("predictions of the dense model"):
        stream.advance(block, index)
    return stream.hidden, stream.as_tuple
