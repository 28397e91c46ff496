"""Language models from the hub, a folder, a GGUF file or the built-in one."""

from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, snapshot_download
from transformers import PreTrainedModel

from pruner_zero.choices import Dtype
from pruner_zero.devices import find_devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.hub import hub_reachable
from pruner_zero.models.builtin import builtin_folder, load_builtin
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.offloaded import OffloadedModel, open_offloaded
from pruner_zero.models.pickled import BESIDE, PICKLED, converted_folder
from pruner_zero.models.placement import place_model
from pruner_zero.models.read import read_model, readable
from pruner_zero.models.shards import weight_files


def load_model(source: str | Path, dtype: Dtype = "auto", device: str = "auto") -> LanguageModel:
    """Load a decoder-only language model and its tokenizer.

    source: a hub id, a folder, a `.gguf` file or `builtin:smollm2-135m`. dtype: that of the
    weights; "auto" keeps the checkpoint's. device: what `find_devices` takes. Only safetensors
    and GGUF weights are read, pickled ones where `pickled:` stands before the hub id or folder.
    Raises PrunerZeroError naming what to change.
    """
    devices = find_devices(device)
    loaded = _read(str(source), dtype)
    place_model(loaded.model, devices)
    return loaded


def _read(name: str, dtype: Dtype) -> LanguageModel:
    if name.startswith("builtin:"):
        return load_builtin(name, dtype)
    if name.startswith(PICKLED):
        return read_model(_pickled_folder(name), name, dtype, local_files_only=True)
    path = Path(name)
    if name.strip() and path.is_dir():
        _check_folder(path)
        return read_model(name, name, dtype, local_files_only=True)
    if path.suffix == ".gguf" and path.is_file():
        return read_model(path.parent, name, dtype, gguf_file=path.name, local_files_only=True)
    _check_hub_id(name)
    offline = is_offline_mode() or not hub_reachable()
    return read_model(name, name, dtype, local_files_only=offline)


def load_offloaded(
    source: str | Path, dtype: Dtype = "auto", device: str = "auto"
) -> OffloadedModel:
    """The model `source` with its weights left on disk, to be read block by block.

    source: a folder, a hub id or `builtin:smollm2-135m`. device: where a block is read to, the
    first that `find_devices` gives. Raises PrunerZeroError as `load_model` does, and for a GGUF
    file and a quantized checkpoint, which have no weights that could be read one by one.
    """
    home = find_devices(device).first
    return open_offloaded(model_folder(source), str(source), dtype, home)


def model_folder(source: str | Path) -> Path:
    """The local folder that holds the safetensors of the model `source`.

    A hub model is fetched, the built-in one converted. Raises PrunerZeroError naming what to
    change; a GGUF file has no such folder.
    """
    name = str(source)
    if name.startswith("builtin:"):
        return builtin_folder(name)
    if name.startswith(PICKLED):
        return _pickled_folder(name)
    path = Path(name)
    if name.strip() and path.is_dir():
        _check_folder(path)
        return path
    if path.suffix == ".gguf" and path.is_file():
        raise PrunerZeroError(
            f"{name} is one GGUF file, which --offload cannot read block by block: "
            "give the folder of a model saved as safetensors, or leave out --offload"
        )
    return _fetched(name, "*.safetensors")


def as_language_model(
    model: str | Path | LanguageModel | PreTrainedModel,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> LanguageModel:
    """`model` itself where it is loaded already, with its `tokenizer`; loaded by name otherwise.

    A model object is used in place, in evaluation mode; it stays on the device it is on unless
    another one than "auto" is asked for. Raises PrunerZeroError where a model object comes
    without a tokenizer.
    """
    if isinstance(model, (str, Path)):
        return load_model(model, dtype, device)
    if not isinstance(model, LanguageModel):
        if tokenizer is None:
            raise PrunerZeroError("a model object needs its tokenizer: pass tokenizer=")
        name = model.name_or_path or type(model).__name__
        model = LanguageModel(model.eval(), tokenizer, name)
    if device != "auto":
        place_model(model.model, find_devices(device))
    return model


def _pickled_folder(name: str) -> Path:
    """The folder of the copy as safetensors of what `name` asks for."""
    source = name.removeprefix(PICKLED)
    path = Path(source)
    if not (source.strip() and path.is_dir()):
        path = _fetched(source, "*.bin")
    _check_config(path)
    with readable(name, local=True):
        return converted_folder(path)


def _fetched(name: str, weights: str) -> Path:
    """The folder in the hub's cache of the model `name`, with the files `weights`."""
    _check_hub_id(name)
    offline = is_offline_mode() or not hub_reachable()
    with readable(name, local=False):
        files = [*BESIDE, weights]
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=offline))


def _check_folder(path: Path) -> None:
    _check_config(path)
    if not any(path.glob("*.safetensors")):
        raise PrunerZeroError(
            f"{path} has no .safetensors weights, and pickled ones are read only where asked "
            f"for by name: give pickled:{path}, or save the model again with save_pretrained"
        )
    weight_files(path)


def _check_config(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise PrunerZeroError(f"{path} has no config.json: give the folder of a saved model")
    if (path / "adapter_config.json").is_file():
        # transformers would load what that file names, from wherever it points to.
        raise PrunerZeroError(
            f"{path} holds an adapter (adapter_config.json): merge it into its model and save that"
        )


def _check_hub_id(name: str) -> None:
    """Raise PrunerZeroError where `name` can only have been meant as a path, or as nothing."""
    path = Path(name)
    wanted = "give a folder, a .gguf file or a hub id"
    if not name.strip():
        raise PrunerZeroError(f"the name of the model is empty: {wanted}")
    if path.is_file():
        raise PrunerZeroError(f"{name} is not a model: {wanted}")
    if (
        path.suffix in {".gguf", ".safetensors"}
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    ):
        raise PrunerZeroError(f"{name} does not exist: {wanted}")
