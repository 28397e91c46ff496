"""Words that settings and subpackages share, each stated once; nothing here imports torch."""

from typing import Literal

from pruner_zero.errors import PrunerZeroError

# The names of texts that the model writes itself, by what it begins with: `self` is one of the
# others, by the model.
SELF = "self"
SELF_CHAT, SELF_DOCUMENTS = "self:chat", "self:documents"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Scope = Literal["row", "block", "matrix", "global"]
# Comparison groups of a search: the weights of a scope, or whole units (`unit`).
Group = Literal["row", "block", "matrix", "global", "unit"]
GgufType = Literal["F16", "BF16", "Q8_0", "Q4_0"]
Structure = Literal["channels", "heads", "blocks", "experts", "vocabulary"]
# Kinds of units that compete for one budget.
SOLD: tuple[Structure, ...] = ("channels", "heads", "vocabulary")


def check_sparsity(sparsity: float) -> None:
    """Raise PrunerZeroError unless `sparsity`, the pruned share, is in [0, 1)."""
    if not 0 <= sparsity < 1:
        percent = 1 < sparsity < 100
        example = f"{sparsity / 100:g} for {sparsity:g} %" if percent else "0.5"
        raise PrunerZeroError(
            f"sparsity {sparsity} is outside [0, 1): set it to the pruned share, such as {example}"
        )


def is_written(text: str) -> bool:
    """Whether a model writes the text of this name: self, self:chat, self:documents, self:FILE."""
    return text == SELF or text.startswith(f"{SELF}:")
