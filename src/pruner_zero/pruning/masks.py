"""Masks on disk: one bit for each weight of the pruned matrices, 1 = kept, with checksums."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import is_intact, sha256, with_checksum, write_atomic, writing
from pruner_zero.models import LanguageModel, Matrix
from pruner_zero.tensor_file import TensorFile, TensorWriter

FOLDER = "masks"
_BITS, _INDEX = "masks.safetensors", "masks.json"
_FORMAT = 1


def save_masks(language_model: LanguageModel, matrices: Sequence[Matrix], folder: Path) -> None:
    """Write the masks of pruned `matrices` to `folder`; non-zero weights are kept.

    A mask (out, in) is stored as bytes (out, ⌈in/8⌉), the first column in the lowest bit, as
    compressed-tensors packs them; masks.json holds shapes and checksums. One block of the model
    is read at a time. Raises PrunerZeroError where the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    shapes = {matrix.name: tuple(matrix.weight.shape) for matrix in matrices}
    layout = {name: (torch.uint8, _packed(shape)) for name, shape in shapes.items()}
    entries = {}
    with TensorWriter(folder / _BITS, layout) as writer:
        for name, mask in _masks(language_model, matrices):
            writer.write(torch.from_numpy(np.packbits(mask, axis=1, bitorder="little")))
            entries[name] = {"shape": list(mask.shape), "kept": int(mask.sum())}
    index = {"format": _FORMAT, "files": {_BITS: writer.sha256}, "matrices": entries}
    write_atomic(folder / _INDEX, json.dumps(with_checksum(index)) + "\n")


def load_masks(folder: str | Path) -> dict[str, Tensor]:
    """The masks that `prune` saved with a model: bool (out, in) by matrix name, True = kept.

    folder: the model's, or the `masks` folder in it. Raises PrunerZeroError where there are
    none, or where a checksum says that they are damaged.
    """
    path = Path(folder)
    path = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (path / _INDEX).is_file():
        raise PrunerZeroError(f"{path} holds no masks: give what prune --save-mask wrote")
    shapes = _read_index(path)
    file = TensorFile(path / _BITS)
    packed = {name: _packed(shape) for name, shape in shapes.items()}
    if {name: file.shape(name) for name in file} != packed:
        raise _damaged(path / _BITS)
    bits = {name: file.read(name) for name in shapes}
    if any(tensor.dtype != torch.uint8 for tensor in bits.values()):
        raise _damaged(path / _BITS)
    return {name: _unpack(bits[name], columns) for name, (_, columns) in shapes.items()}


def _read_index(path: Path) -> dict[str, tuple[int, int]]:
    """The shapes of the masks. Raises PrunerZeroError where a checksum does not fit."""
    try:
        index = json.loads((path / _INDEX).read_bytes())
        if not is_intact(index) or index["format"] != _FORMAT:
            raise ValueError
        digest, matrices = index["files"][_BITS], index["matrices"]
        shapes = {name: (entry["shape"][0], entry["shape"][1]) for name, entry in matrices.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path / _INDEX) from error
    if not (path / _BITS).is_file() or sha256(path / _BITS) != digest:
        raise _damaged(path / _BITS)
    return shapes


def _masks(
    language_model: LanguageModel, matrices: Sequence[Matrix]
) -> Iterator[tuple[str, np.ndarray[tuple[int, int], np.dtype[np.bool_]]]]:
    for block, of_block in groupby(matrices, key=lambda matrix: matrix.block):
        with language_model.block(block):
            for matrix in of_block:
                yield matrix.name, (matrix.weight != 0).cpu().numpy()


def _packed(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], -(-shape[1] // 8)


def _unpack(bits: Tensor, columns: int) -> Tensor:
    unpacked = np.unpackbits(bits.numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(unpacked.astype(np.bool_))


def _damaged(path: Path) -> PrunerZeroError:
    return PrunerZeroError(f"{path} is damaged: restore it, or prune again with --save-mask")


def check_fit(matrices: Sequence[Matrix], masks: Mapping[str, Tensor]) -> list[Matrix]:
    """Those of `matrices` that have a mask. Raises PrunerZeroError for a mask without a matrix."""
    by_name = {matrix.name: matrix for matrix in matrices}
    for name, mask in masks.items():
        matrix = by_name.get(name)
        if matrix is None or matrix.weight.shape != mask.shape or mask.dtype != torch.bool:
            has = "has no such matrix" if matrix is None else f"has {tuple(matrix.weight.shape)}"
            raise PrunerZeroError(
                f"the mask of {name} is {str(mask.dtype).removeprefix('torch.')} "
                f"{tuple(mask.shape)}, but the model {has}: give the masks of a model of this shape"
            )
    return [matrix for matrix in matrices if matrix.name in masks]
