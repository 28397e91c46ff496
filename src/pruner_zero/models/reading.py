"""Reading a checkpoint with transformers; every error in one line that says what to change."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pruner_zero.choices import Dtype
from pruner_zero.devices import is_out_of_memory
from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.files import is_gguf
from pruner_zero.models.block_sizes import causal_class, has_code
from pruner_zero.models.deci import DECI, described, read_tensors, set_described_sizes
from pruner_zero.models.gguf_header import GgufHeader, read_header
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.quiet import quiet
from pruner_zero.models.transformers_private import is_causal

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def read_model(
    path: Path,
    name: str,
    dtype: Dtype = "auto",
    *,
    weights: bool = True,
) -> LanguageModel:
    """The model in the folder or GGUF file `path`, in evaluation mode, known as `name`.

    weights: False leaves all parameters on the meta device, checked but not read. Raises
    PrunerZeroError where anything cannot be read, is no causal language model, or lacks weights:
    nothing is filled in at random.
    """
    with readable(name), quiet(), ExitStack() as stack:
        header = read_header(path, name) if is_gguf(path) else None
        shapes = _stored_shapes(path, header)
        deci = header if header and header.architecture == DECI else None
        file = stack.enter_context(described(deci, name)) if deci else path
        folder = file.parent if header else path
        options: dict[str, Any] = {
            "local_files_only": True,
            # Code that comes with a model is not run, nor is the user asked whether to.
            "trust_remote_code": False,
            **({"gguf_file": file.name} if header else {}),
        }
        config = AutoConfig.from_pretrained(folder, **options)
        if deci:
            set_described_sizes(config, deci)
        _check_causal(config, name)
        _check_sizes(config, shapes, name)
        if not weights and getattr(config, "quantization_config", None) is not None:
            raise PrunerZeroError(
                f"{name} is quantized, which --offload cannot read: give its unquantized "
                "weights, or leave out --offload"
            )
        asked = None if dtype == "auto" else getattr(torch, dtype)
        family: Any = AutoModelForCausalLM
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder, **options}
        if deci:
            tensors = read_tensors(path, deci, config, asked)
            source = {"pretrained_model_name_or_path": None, "state_dict": tensors}
        if deci or has_code(config):
            # Of the code beside the weights, the package has a copy.
            family, source["config"] = causal_class(config), config
        model, report = family.from_pretrained(
            dtype=asked or "auto",
            device_map=None if weights else {"": "meta"},
            # Kernels of the hub replace layers, and know no "meta".
            use_kernels=False,
            use_safetensors=None if header else True,
            # Reported rather than raised, so that the error below can name the weight.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source,
        )
        if deci:
            model.name_or_path = model.config.name_or_path = str(path.parent)
        _check_complete(report, name)
        _check_blocks(model, report, name)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    _forget_quantization(model)
    return LanguageModel(model.eval(), tokenizer, name)


def _check_causal(config: Any, name: str) -> None:
    if not is_causal(config):
        kind = config.architectures[0] if config.architectures else config.model_type
        raise PrunerZeroError(
            f"{name} is a {kind}, not a causal language model: give a decoder-only one"
        )


def _stored_shapes(path: Path, header: GgufHeader | None) -> list[tuple[int, ...]]:
    """The shapes of all tensors in a folder, or in a GGUF file with the `header`."""
    if header:
        return [tensor.shape for tensor in header.tensors.values()]
    shapes = []
    for each in weight_files(path):
        with safe_open(each, "pt") as file:
            shapes += [tuple(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118
    return shapes


def _check_sizes(config: Any, shapes: Sequence[tuple[int, ...]], name: str) -> None:
    """Raise PrunerZeroError for sizes for which no memory may be allocated, nor time be spent."""
    longest = max((size for shape in shapes for size in shape), default=0)
    fields = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), longest)
    limits = {"num_hidden_layers": len(shapes), **fields}
    text = config.get_text_config()
    blocks = text.per_layer_config if text.is_heterogeneous else [text]
    for block, field, limit in ((block, *each) for block in blocks for each in limits.items()):
        size = getattr(block, field, None)
        if isinstance(size, int) and size > limit:
            raise PrunerZeroError(
                f"the configuration of {name} has {field} {size}, more than its {len(shapes)} "
                "tensors have: use the configuration that belongs to the weights"
            )


def _check_complete(report: Mapping[str, Any], name: str) -> None:
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing:
        raise PrunerZeroError(
            f"{name} lacks {len(missing)} of the model's weights, {missing[0]} first: "
            "fetch or save it again"
        )
    if mismatched:
        weight, stored, expected = mismatched[0]
        raise PrunerZeroError(
            f"{weight} of {name} has the shape {tuple(stored)} where its configuration asks "
            f"for {tuple(expected)}: use the configuration that belongs to the weights"
        )


def _check_blocks(model: PreTrainedModel, report: Mapping[str, Any], name: str) -> None:
    """Raise PrunerZeroError where the files hold weights of blocks that the model does not have."""
    modules = dict(model.named_modules())
    for weight in sorted(report["unexpected_keys"]):
        block = re.match(r"(.+?)\.\d+\.", weight)
        blocks = modules.get(block[1]) if block else None
        if isinstance(blocks, torch.nn.ModuleList):
            raise PrunerZeroError(
                f"{name} has {weight}, but its configuration describes {len(blocks)} blocks: "
                "use the configuration that belongs to the weights"
            )


def _forget_quantization(model: PreTrainedModel) -> None:
    """Mark a dequantized model as an ordinary one, so that it is saved as one."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    model.is_quantized = False


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn an error of reading `name` into a PrunerZeroError that says what to do.

    A lack of memory is none of them: the commands say what to do about it.
    """
    try:
        yield
    except PrunerZeroError:
        raise
    except Exception as error:
        # A value that does not fit can raise an error of any type.
        if is_out_of_memory(error):
            raise
        reason = one_line(error, 300)
        if isinstance(error, SafetensorError):
            raise PrunerZeroError(
                f"the weights of {name} are damaged ({reason}): fetch them again"
            ) from error
        if isinstance(error, KeyError):
            reason = f"transformers misses or does not know {reason} in one of its .json files"
        elif isinstance(error, ArithmeticError | LookupError | AttributeError | TypeError):
            reason = f"a value in its files does not fit the others ({reason})"
        raise PrunerZeroError(f"{name} cannot be loaded: {reason}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load from `folder`.

    Raises PrunerZeroError where there are none, or its index points outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        paths = [Path(name) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PrunerZeroError(
            f"{folder} has neither {WEIGHTS} nor a readable {INDEX}: save the model again"
        ) from error
    for path in paths:
        # A path outside may be another user's file, and another suffix a pickled file.
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
            raise PrunerZeroError(
                f"{folder / INDEX} names {str(path)[:200]!r}, which is no .safetensors file "
                "inside the folder: save the model again"
            )
    return [folder / path for path in paths]
