"""All private names of transformers that this program uses.

These names may change with any release: pyproject.toml bounds the version, and a test keeps them
out of the other modules.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, WeightConverter
from transformers.core_model_loading import (
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)


@dataclass
class StoredGroup:
    """The stored tensors that make up one or several tensors of a model.

    name: the first of the model's tensors. converter: the object that merges or splits the stored
    tensors, None where one stored tensor is one of the model's. stored: the names of the stored
    tensors, each with the converter's pattern that it matches.
    """

    name: str
    converter: WeightConverter | None = None
    stored: list[tuple[str, str]] = field(default_factory=list)


def group_stored(model: PreTrainedModel, stored: Iterable[str]) -> list[StoredGroup]:
    """The stored tensors that make up each tensor of `model`, loaded by `from_pretrained`.

    stored: the names of all tensors in its files.
    """
    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
    converters = [item for item in conversions if isinstance(item, WeightConverter)]
    by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    groups: dict[str, StoredGroup] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state:
            converter = None if pattern is None else by_pattern[pattern]
            group = groups.setdefault(name, StoredGroup(name, converter))
            group.stored.append((key, pattern or key))
    return list(groups.values())


def convert_group(
    model: PreTrainedModel, group: StoredGroup, read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The tensors of `model` that come from `group`, by name; `read` gives a stored one."""
    if group.converter is None:
        return {group.name: read(group.stored[0][0])}
    converter = deepcopy(group.converter)
    for key, pattern in group.stored:
        converter.add_tensor(group.name, key, pattern, partial(read, key))
    made = converter.convert(group.name, model=model, config=model.config)
    return {
        name: tensors[0] if isinstance(tensors, list) else tensors for name, tensors in made.items()
    }


def built_like(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the class, configuration and dtype of `model`, with weights of its own."""
    built: PreTrainedModel = type(model)._from_config(model.config, dtype=model.dtype)
    return built


def copy_conversions(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Have `target` saved in the layout that `source` was loaded from."""
    target._weight_conversions = source._weight_conversions


def as_stored(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of `model` under the names and in the layout in which they are saved.

    Tensors that are not saved are left out.
    """
    saved = model.state_dict().keys() - set(model._keys_to_ignore_on_save or ())
    kept = {name: tensor for name, tensor in tensors.items() if name in saved}
    stored: dict[str, Tensor] = revert_weight_conversion(model, kept) if kept else {}
    return stored


@contextmanager
def experts_one_by_one(module: nn.Module) -> Iterator[None]:
    """Have mixtures of experts in `module` run expert by expert, each a product of its own."""
    configs = {
        id(config): config
        for part in module.modules()
        if (config := getattr(part, "config", None)) is not None
        and hasattr(config, "_experts_implementation")
    }
    with ExitStack() as stack:
        for config in configs.values():
            before = config._experts_implementation
            stack.callback(setattr, config, "_experts_implementation", before)
            config._experts_implementation = "eager"
        yield


def gguf_reading(model: PreTrainedModel, architecture: str) -> tuple[str, dict[str, str]]:
    """How transformers reads a GGUF file of `architecture` into `model`; it takes seconds.

    The name of the class that changes its tensors, and the names of the model's tensors by those
    in the file.
    """
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    return processor.__name__, get_gguf_hf_weights_map(model, processor())


def is_causal(config: Any) -> bool:
    """Whether transformers has a causal language model for `config`, and it is meant to be one."""
    if config.is_encoder_decoder:
        return False
    if config.architectures:
        names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        return any(architecture in names for architecture in config.architectures)
    # BERT and similar encoders have a causal head too, used if configured as decoders.
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or bool(getattr(config, "is_decoder", False))
    )
