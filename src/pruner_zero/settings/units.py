"""The settings of whole units: which units to remove, and how many."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import Cli, Settings

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def read_parameters(text: str) -> float:
    """The number of parameters that `text` names, such as 100M, or their share, such as 0.75.

    A number up to 1 is a share. Raises ValueError for any other text, and for nothing left.
    """
    written = re.fullmatch(r"([0-9_]*\.?[0-9]+(?:[eE][0-9]+)?)\s*([KMB]?)", text.strip().upper())
    number = float(written[1]) * _FACTORS[written[2]] if written else 0.0
    if not 0 < number < float("inf"):
        raise ValueError("write a share such as 0.75, or a number such as 100M or 1.2B")
    return number


def check_structure(settings: Any, beside: Sequence[str]) -> None:
    """Refuse the settings `beside` with --structure, and the settings of units without it.

    settings: of a command that has --structure. Raises PrunerZeroError naming the option.
    """
    if not settings.structure and settings.parameters:
        raise PrunerZeroError(
            "--parameters applies to whole units alone: add --structure, or leave out --parameters"
        )
    if settings.structure != "channels":
        settings.refuse(("multiple_of",), "--structure channels")
    if not settings.structure:
        return
    if (settings.sparsity is None) == (settings.parameters is None):
        raise PrunerZeroError(
            f"--structure {settings.structure} needs either --sparsity, the share of units "
            "to remove, or --parameters, the size of the smaller model"
        )
    for name in beside:
        if getattr(settings, name):
            raise PrunerZeroError(
                f"--structure {settings.structure} removes whole units and decides which: leave "
                f"out --{name.replace('_', '-')}"
            )


def _checked(text: str) -> str:
    read_parameters(text)
    return text


# As text, since it is a number or a share; YAML and Python may give a number.
Parameters = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_checked)]


class SizeSettings(Settings):
    """The number of units to remove, where --sparsity does not set it."""

    panel: ClassVar[str] = "What is pruned"

    parameters: Annotated[Parameters | None, Cli(default="as --sparsity says")] = Field(
        None,
        description="Remove units until the model has at most this number of parameters, such as "
        "100M, or this share of its parameters, such as 0.75, embeddings counted.",
    )
    multiple_of: int = Field(
        32,
        ge=1,
        description="When channels are removed, every MLP keeps a multiple of this many channels.",
    )
