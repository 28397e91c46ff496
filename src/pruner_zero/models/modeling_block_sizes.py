"""Causal language models whose blocks have different sizes, by `per_layer_config`.

This file is copied into the folders of such models. It needs transformers alone:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
"""

from functools import cache
from typing import Any

import transformers


@cache
def with_block_sizes(family: Any) -> Any:
    """The class `family` of transformers, with each block built from its layer's configuration."""

    class WithBlockSizes(family):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            overrides = config.to_dict().get("per_layer_config")
            config.per_layer_config = None
            super().__init__(config)
            config.per_layer_config = overrides
            layers = self.base_model.layers
            for index, layer in enumerate(layers):
                layers[index] = type(layer)(config.per_layer_config[index], index)
                for module in layers[index].modules():
                    # The attention implementation may change in the one configuration of all.
                    if hasattr(module, "config"):
                        module.config = config
            self.post_init()

    WithBlockSizes.__name__ = WithBlockSizes.__qualname__ = family.__name__
    return WithBlockSizes


def __getattr__(name: str) -> Any:
    if not name.endswith("ForCausalLM"):
        raise AttributeError(name)
    return with_block_sizes(getattr(transformers, name))
