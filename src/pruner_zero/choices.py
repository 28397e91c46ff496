"""Words that settings and subpackages share, each stated once; nothing here imports torch."""

from typing import Literal

# The name of the text that the model writes itself.
SELF = "self"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Scope = Literal["row", "block", "matrix", "global"]
# Comparison groups of a search: the weights of a scope, or whole units (`unit`).
Group = Literal["row", "block", "matrix", "global", "unit"]
Mode = Literal["auto", "sequential", "one-shot"]
Structure = Literal["channels", "heads", "blocks", "experts"]
