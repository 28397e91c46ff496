"""Settings of the commands that prune: the weights or units to prune, the calibration text."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from pruner_zero.choices import check_sparsity, is_written
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import MAIN, TEXT_HELP, Cli, Settings

SELF_HELP = (
    "text that the {model} writes, which is kept in the cache: documents, or dialogues where they "
    "are in other scripts than its chat template; self:documents and self:chat name one, and "
    "self:FILE is its answers to prompts, the lines of a text file or a .jsonl or .json file. "
    "Several texts are mixed, in equal parts or by shares, each given as TEXT=SHARE."
)
CALIBRATION_HELP = (
    f"Text that statistics are collected on: {TEXT_HELP} Or self: "
    f"{SELF_HELP.format(model='dense model')}"
)


def read_shares(words: Sequence[str]) -> str | dict[str, float]:
    """The only text of `words`, each TEXT or TEXT=SHARE, or several with their shares.

    The share is 1 where none is given. A word that is the path of a file is a text. Raises
    PrunerZeroError where a text occurs twice.
    """
    shares: dict[str, float] = {}
    for word in words:
        text, share = _split(word)
        if text in shares:
            raise PrunerZeroError(f"the text {text} is given twice: give it a larger share")
        shares[text] = share
    return shares if len(shares) > 1 else next(iter(shares))


def read_texts(given: Any) -> Any:
    """The name of a text, or several with their shares. Raises ValueError and PrunerZeroError."""
    if isinstance(given, list | tuple) and given and all(isinstance(word, str) for word in given):
        given = read_shares(given)
    if isinstance(given, dict) and len(given) == 1:
        [given] = given
    if not given or not isinstance(given, str | dict):
        raise ValueError("give a text, or several, each as TEXT or TEXT=SHARE")
    return given


def are_written(texts: Any) -> bool:
    """Whether a model writes all of these texts, in any form that `read_texts` takes."""
    with suppress(ValueError):
        return all(map(is_written, _names(read_texts(texts))))
    return False


def written_of(texts: str | Mapping[str, float]) -> list[str]:
    """Those of `texts` that a model writes."""
    return [name for name in _names(texts) if is_written(name)]


def _names(texts: str | Mapping[str, float]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _split(word: str) -> tuple[str, float]:
    text, _, share = word.rpartition("=")
    if text and not os.path.exists(word):
        with suppress(ValueError):
            number = float(share)
            if not 0 < number < math.inf:
                raise PrunerZeroError(f"the share of {text} is {share}: give a number above 0")
            return text, number
    return word, 1.0


# One text, or several with their shares.
Texts = Annotated[
    dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | str, BeforeValidator(read_texts)
]
SHARES = Cli(panel="Options", metavar="TEXT", read=read_shares)

# The tokens of the calibration text where blocks are not trained.
TOKENS = 24 * 1024
# The tokens in a window; shorter ones of as many tokens, each a text of its own where the model
# writes them, give a model nearer to the dense one (benchmarks/why.md).
LONG, SHORT = 1024, 256


class CalibrationSettings(Settings):
    """Which statistics are collected, and on which text."""

    panel: ClassVar[str] = "Calibration"

    calibration: Annotated[Texts | None, SHARES] = Field(
        None,
        description=f"{CALIBRATION_HELP} Metrics over the weights alone, such as magnitude, need "
        "none.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Seed of the choice of windows, or of the text that the model writes.",
    )


class WindowSettings(Settings):
    """The calibration windows, the same for all that is compared."""

    panel: ClassVar[str] = CalibrationSettings.panel

    windows: Annotated[int, Cli(panel="Options", default=f"as many as hold {TOKENS:,} tokens")] = (
        Field(
            TOKENS // LONG,
            ge=1,
            description="Calibration windows: pieces of the text of --seqlen tokens.",
        )
    )
    seqlen: int = Field(LONG, ge=2, description="Tokens in a window.")

    @model_validator(mode="before")
    @classmethod
    def _keep_tokens(cls, given: Any) -> Any:
        """As many windows of another length as have the tokens of the default."""
        length = given.get("seqlen") if isinstance(given, dict) else None
        if isinstance(length, int) and length > 0 and given.get("windows") is None:
            return {**given, "windows": max(1, TOKENS // length)}
        return given


class SparsitySettings(Settings):
    """How many weights of which matrices become zero."""

    panel: ClassVar[str] = "What is pruned"

    sparsity: Annotated[float | None, MAIN] = Field(
        None, description="Share of the weights that become zero, such as 0.5; or give --pattern."
    )
    pattern: Annotated[str | None, Cli(panel="Options", metavar="N:M")] = Field(
        None, description="N zeros in every M neighbouring weights of a row, such as 2:4."
    )
    include: Annotated[tuple[str, ...], Cli(metavar="PATTERN")] = Field(
        (), description="Prune only matrices whose name matches, such as '*.mlp.*'."
    )
    exclude: Annotated[tuple[str, ...], Cli(metavar="PATTERN")] = Field(
        (), description="Leave matrices whose name matches as they are."
    )

    @field_validator("sparsity")
    @classmethod
    def _check_sparsity(cls, sparsity: float | None) -> float | None:
        if sparsity is not None:
            check_sparsity(sparsity)
        return sparsity


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


def check_structure(settings: Any, beside: Sequence[str], mixed: bool = False) -> None:
    """Refuse, by a PrunerZeroError, `beside` with --structure, and sizes that do not fit it.

    mixed: whether several kinds of units may compete.
    """
    several = "," in (settings.structure or ",")
    if not (settings.structure or settings.parameters):
        return
    if not (settings.structure or mixed):
        raise PrunerZeroError(
            "--parameters applies to whole units alone: add --structure, or leave out --parameters"
        )
    if several and (settings.sparsity is not None or not settings.parameters):
        raise PrunerZeroError(
            "--parameters, the size of the smaller model, takes the place of --sparsity where "
            "units of several kinds compete: give it alone, or name one by --structure"
        )
    if (settings.sparsity is None) == (settings.parameters is None):
        raise PrunerZeroError(
            f"--structure {settings.structure} needs either --sparsity, the share of units to "
            "remove, or --parameters, the size of the smaller model"
        )
    for name in beside:
        if getattr(settings, name):
            raise PrunerZeroError(
                "whole units are removed, and it is decided which: leave "
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
