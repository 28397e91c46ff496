"""Sizes that differ between the blocks of a model, in its configuration and its folder.

Where they differ, they are entries of transformers' `per_layer_config`. transformers builds no
family of models by them, so such a folder has code beside the weights that does.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from pruner_zero.models import modeling_block_sizes
from pruner_zero.models.modeling_block_sizes import with_block_sizes
from pruner_zero.models.quiet import quiet

# The fields of the configuration that count units; the first counts the units of a coupling.
COUNTS: Mapping[str, tuple[str, ...]] = {
    "channels": ("intermediate_size",),
    "heads": ("num_key_value_heads", "num_attention_heads"),
}
HEADS = COUNTS["heads"]
FIELDS = (*COUNTS["channels"], *HEADS)

_CODE = Path(modeling_block_sizes.__file__)
_AUTO_CLASS = "AutoModelForCausalLM"


def block_sizes(config: PreTrainedConfig) -> list[dict[str, int]]:
    """The `FIELDS` of the configuration with their values in each block, those that it has."""
    return [
        {field: size for field in FIELDS if isinstance(size := getattr(block, field, None), int)}
        for block in config.per_layer_config
    ]


def set_block_sizes(config: PreTrainedConfig, sizes: Sequence[Mapping[str, int]]) -> None:
    """Give each block its `sizes`, any of `FIELDS`, in place; other fields keep their values.

    A size that is the same in all blocks is a plain field, as in any configuration. Where others
    differ, the plain field keeps its value, which describes no block any more. Raises ValueError
    where `sizes` are not those of all blocks.
    """
    before, width = block_sizes(config), head_width(config)
    after = [{**old, **new} for old, new in zip(before, sizes, strict=True)]
    overrides: dict[int, dict[str, Any]] = {index: {} for index in range(len(after))}
    for index, fields in (config.to_dict().get("per_layer_config") or {}).items():
        others = {key: value for key, value in fields.items() if key not in FIELDS}
        overrides.setdefault(int(index), {}).update(others)
    config.per_layer_config = None
    for field in FIELDS:
        values = [block.get(field) for block in after]
        if field in HEADS and values != [block.get(field) for block in before]:
            # Otherwise it would follow from the new number of heads.
            config.head_dim = width
        if len(set(values)) > 1:
            for index, value in enumerate(values):
                overrides[index][field] = value
        elif values[0] is not None:
            setattr(config, field, values[0])
    config.per_layer_config = {key: value for key, value in overrides.items() if value} or None
    _describe_code(config)


def head_width(config: PreTrainedConfig) -> int:
    """The width of an attention head, the same in all blocks."""
    block = config.per_layer_config[0]
    width: int = getattr(block, "head_dim", None) or block.hidden_size // block.num_attention_heads
    return width


def has_code(config: PreTrainedConfig) -> bool:
    """Whether sizes differ between blocks, by `set_block_sizes`, so that code has to build them."""
    named = (getattr(config, "auto_map", None) or {}).get(_AUTO_CLASS, "")
    return str(named).startswith(f"{_CODE.stem}.")


def causal_class(config: PreTrainedConfig) -> Any:
    """The class of transformers of the models that `config` describes.

    Where sizes differ, it builds each block by its sizes.
    """
    family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return with_block_sizes(family) if has_code(config) else family


def copy_code(config: PreTrainedConfig, folder: Path) -> None:
    """Copy the code that `config` names, if any, into the `folder` of its model."""
    if has_code(config):
        shutil.copyfile(_CODE, folder / _CODE.name)


def _describe_code(config: PreTrainedConfig) -> None:
    """Name the code where sizes differ, and take its name away where they do not."""
    values, differing = vars(config), set(FIELDS) & set(config.per_layer_attributes or ())
    # Families check the plain fields, or compute defaults from them that are not used.
    reading = "allow_global_per_layer_attribute_access"
    values.pop(reading, None)
    if not differing.isdisjoint(HEADS):
        values[reading] = True
        with quiet():
            # Only the first reading of each gives a warning.
            for field in differing:
                getattr(config, field)
    if differing:
        family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
        config.auto_map = {_AUTO_CLASS: f"{_CODE.stem}.{family}"}
    elif has_code(config):
        del config.auto_map
