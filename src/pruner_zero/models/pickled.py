"""Models whose weights are pickled, read only where `pickled:` stands before the name.

A pickle can contain code. It is read by torch's restricted unpickler, which makes tensors and
runs nothing, and saved once as safetensors, which all other modules then read.
"""

import hashlib
import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.cache import default_cache, made_once
from pruner_zero.devices import is_out_of_memory
from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.files import sha256, writing
from pruner_zero.models.shards import INDEX, weight_files
from pruner_zero.tensor_file import write_tensors

PICKLED = "pickled:"
# The files of a model folder other than its weights.
BESIDE = ("*.json", "*.model", "*.txt", "*.jinja")
_WEIGHTS = "pytorch_model.bin"
_INDEX = f"{_WEIGHTS}.index.json"


def converted_folder(folder: Path) -> Path:
    """A copy of the model saved in `folder`, in the cache, with its weights as safetensors.

    The copy is made where it is missing; its name is the SHA-256 of all files. Raises
    PrunerZeroError where there are no pickled weights, where they are damaged or hold anything
    but tensors, and where the copy cannot be written.
    """
    weights = weight_files(folder, _WEIGHTS, _INDEX)
    beside = sorted({path for pattern in BESIDE for path in folder.glob(pattern)})
    digest = hashlib.sha256()
    for path in (*weights, *beside):
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())

    def convert(copy: Path) -> None:
        for path in beside:
            if path.name not in {INDEX, _INDEX}:
                shutil.copyfile(path, copy / path.name)
        weight_map: dict[str, str] = {}
        for number, path in enumerate(weights, 1):
            tensors, name = _read(path), f"model-{number:05d}.safetensors"
            write_tensors(copy / name, tensors, {"format": "pt"})
            weight_map.update(dict.fromkeys(tensors, name))
        (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    copy = default_cache() / "models" / f"{digest.hexdigest()[:20]}-pickled"
    with writing(copy):
        return made_once(copy, convert)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in one file, memory-mapped where its format allows."""
    try:
        with warnings.catch_warnings(action="ignore"):
            state: Any = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise PrunerZeroError(
            f"{path} is damaged or holds more than tensors, which is never run: "
            "get its weights as safetensors"
        ) from error
    except Exception as error:
        # A damaged file can raise an error of any type in the reader.
        if is_out_of_memory(error):
            raise
        raise PrunerZeroError(f"{path} is damaged ({one_line(error)}): fetch it again") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        for name, tensor in state.items()
    ):
        raise PrunerZeroError(
            f"{path} is not a model's state, a tensor by each name: get it as safetensors"
        )
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}
