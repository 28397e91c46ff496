"""The settings of `prune`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from pruner_zero.choices import Scope, Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import MAIN, Cli, ModelSettings, OutputSettings, PathText
from pruner_zero.settings.calibration import (
    COUNTED,
    WRITTEN,
    MethodSettings,
    SizeSettings,
    are_written,
    check_structure,
)

METHOD = "METRIC[@SCOPE][+STEPS]"

# The method where no metric is named: the best method measured so far, in half an hour of a core
# (benchmarks/proof.md, benchmarks/why.md).
DEFAULT: Mapping[str, Any] = MappingProxyType(
    {
        # Found by a search over two models (benchmarks/universal.md).
        "metric": "W * G^0.85 * (column_normalize(W * G^0.55) * "
        "row_normalize(W + (W * X)^0.85))^0.35",
        "scope": "global",
        "reconstruct": 4,
        "distill": 40,
    }
)
# Where a matrix has `MANY_INPUTS` inputs or more, the mask is that of `WIDE_METRIC` inside rows and
# the amounts are `WIDE`: on Qwen2.5-Coder-1.5B it loses a tenth less than Wanda's, masks by
# gradients are no better, and more text is worth more than more passes over the same text
# (benchmarks/why.md). `pruning/shares.py` has the shares of zeros of its matrices. The order inside
# a row is that of W * (X / norm of W's column)^0.5.
# Source: weights over the norms of their columns and a power of X, as in RIA (Zhang et al. 2024)
# and BaWA (ICML 2025, PMLR 267); these exponents were found by hand.
MANY_INPUTS, WIDE_METRIC = 4096, "W * column_normalize(W) * X"
WIDE: Mapping[str, int] = MappingProxyType({"reconstruct": 2, "distill": 60})
# The windows of the default method as a multiple of those of others, and of wide models as a
# multiple of these: more text is worth more than more passes over it, and the distillation has
# windows of its own (benchmarks/why.md).
MORE_WINDOWS, WIDE_WINDOWS = 2, 2
# The default metric where the weights are not compared over the whole model, and that of heads,
# which a search found (benchmarks/units.md).
WITHIN, HEAD_METRIC = "wanda", "X * row_normalize(W * X)"
# The rules that choose whole blocks, tokens and, without a metric, experts; they are no metrics.
BLOCK_INFLUENCE, REAP, TOKEN_COUNT = "block-influence", "reap", "token-count"
RULES: Mapping[Structure, str] = MappingProxyType(
    {"blocks": BLOCK_INFLUENCE, "experts": REAP, "vocabulary": TOKEN_COUNT}
)
# The structures whose units no metric can choose.
RULED: tuple[Structure, ...] = ("blocks", "vocabulary")

# Settings that cannot be combined with --structure.
_BESIDE_STRUCTURE: tuple[str, ...] = ("pattern", "scope", "include", "exclude", "refine")


def default_beside(given: Mapping[str, Any]) -> dict[str, Any]:
    """The default method where no metric is named, without parts that exclude `given` settings."""
    if given.get("structure") in RULES:
        return {"metric": RULES[given["structure"]]}
    chosen = dict(DEFAULT)
    narrower = any(given.get(name) for name in ("pattern", "structure"))
    if narrower or given.get("scope") not in (None, DEFAULT["scope"]):
        chosen["metric"] = HEAD_METRIC if given.get("structure") == "heads" else WITHIN
        del chosen["scope"]
    if given.get("structure"):
        # Least squares follow there (benchmarks/units.md).
        del chosen["reconstruct"]
    elif given.get("mode") == "one-shot":
        # Passes need the inputs that pruned blocks give.
        del chosen["reconstruct"]
        chosen["update"] = "exact"
    return chosen


def rivals_beside(given: Mapping[str, Any]) -> list[tuple[str, Scope]]:
    """The metrics, with their scopes, whose masks are judged beside that of the default method."""
    if any(given.get(name) for name in ("structure", "pattern", "scope")):
        return []
    return [(metric, "row") for metric in (WITHIN, DEFAULT["metric"])]


def _shape_of_windows(asked: Mapping[str, Any]) -> Mapping[str, int]:
    """Windows where the model writes all text, or where a text is only counted."""
    text = asked.get("calibration")
    if "seqlen" in asked:
        return {}
    if text is None or are_written(text):
        return WRITTEN
    return COUNTED if asked.get("structure") == "vocabulary" else {}


class PruneSettings(OutputSettings, MethodSettings, SizeSettings):
    """All that decides the result of `prune`."""

    panel: ClassVar[str] = "What follows the mask"

    metric: Annotated[
        str,
        Cli(
            panel="Options",
            first=True,
            default=f"{DEFAULT['metric']} --scope global --reconstruct {DEFAULT['reconstruct']} "
            f"--distill {DEFAULT['distill']}, or {WITHIN}'s mask or that of scope row where it is "
            f"better; {WIDE_METRIC} --reconstruct {WIDE['reconstruct']} --distill "
            f"{WIDE['distill']} from {MANY_INPUTS} inputs on, with shares of zeros by role, equal "
            f"ones or {WITHIN}'s mask",
        ),
    ] = Field(
        description=f"A name, an expression or a .json tree file, as {METHOD}; `pruner-zero metric "
        "list` shows the names, of which sparsegpt brings its own update.",
    )
    refine: Annotated[bool, MAIN] = Field(
        False,
        description="Improve the mask by swaps of a kept and a pruned weight that lower the error "
        "of the layer's outputs.",
    )
    update: Annotated[
        str | None,
        Cli(panel="Options", default="the metric's own, else none"),
    ] = Field(
        None,
        description="Change the kept weights to compensate for pruned weights: none; obs, "
        "SparseGPT's sweep; exact, least squares.",
    )
    asymmetric: Annotated[bool, MAIN] = Field(
        False,
        description="Swaps and updates aim a quarter of the way at the outputs of the dense model, "
        "and so compensate for some of the errors of earlier blocks.",
    )
    reconstruct: int = Field(
        0,
        ge=0,
        description="Then train the kept weights of each block towards the dense block's outputs, "
        "in this many passes over the calibration windows, before the next block is pruned; with "
        "--distill over the first half of them.",
    )
    distill: Annotated[int, Cli(panel="Options", default="0 with a metric")] = Field(
        0,
        ge=0,
        description="Then train the kept weights for this many optimizer steps of about 1024 "
        "tokens towards the dense model's predictions on the calibration windows, of which it has "
        "the second half after --reconstruct.",
    )
    structure: Annotated[Structure | None, Cli(panel="Options")] = Field(
        None,
        description="Remove whole units in place of single weights, so that the model becomes "
        "smaller and faster: channels of the MLPs; heads (key-value heads with the query heads "
        "that share them); blocks (those that change their input the least); experts of a "
        "mixture; or the vocabulary, of which the tokens go that occur least in --calibration. "
        "Except for experts and tokens, kept weights are then corrected by least squares unless "
        "--update says otherwise. --sparsity is the share of units, or give --parameters.",
    )
    tokens: Annotated[int | None, Cli(panel=SizeSettings.panel, default="as --sparsity says")] = (
        Field(None, ge=1, description="With --structure vocabulary: how many tokens stay.")
    )
    keep: Annotated[
        PathText | None, Cli(panel=SizeSettings.panel, metavar="FILE", default="none")
    ] = Field(
        None,
        description="With --structure vocabulary: a text file whose words must be encoded as "
        "before; all of their tokens stay.",
    )
    offload: Annotated[bool, Cli(panel=ModelSettings.panel)] = Field(
        False, description="Leave the model on disk and read one block at a time."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, given: Any, read: Callable[[Any], Self]) -> Self:
        """Without a metric, use the default method, except for the settings that are given.

        `model_fields_set` has only those of its parts that are given.
        """
        if not isinstance(given, dict) or given.get("metric") is not None:
            return read(given)
        chosen = default_beside(given)
        asked = {name: value for name, value in given.items() if value is not None}
        shape = dict(_shape_of_windows(asked))
        if "reconstruct" in chosen:
            usual = shape.get("windows", cls.model_fields["windows"].default)
            shape["windows"] = MORE_WINDOWS * usual
        settings = read({**shape, **chosen, **asked})
        settings.model_fields_set.difference_update({"windows", *chosen} - asked.keys())
        return settings

    @model_validator(mode="before")
    @classmethod
    def _shape_written_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        asked = {name: value for name, value in given.items() if value is not None}
        return {**_shape_of_windows(asked), **asked}

    @model_validator(mode="after")
    def _check_structure(self) -> "PruneSettings":
        beside = _BESIDE_STRUCTURE
        if self.structure in RULED and self.metric != RULES[self.structure]:
            raise PrunerZeroError(
                f"--structure {self.structure} takes no metric: leave out --metric"
            )
        if self.structure == "blocks" and self.update not in (None, "none", "exact"):
            raise PrunerZeroError(
                f"--update {self.update} does not fit --structure blocks: exact fits the block "
                "before to replace the dropped blocks; none does not"
            )
        if self.structure == "vocabulary":
            beside += ("update", "reconstruct")
        else:
            self.refuse(("tokens", "keep"), "--structure vocabulary")
        if self.structure in RULES:
            beside += ("asymmetric", "offload")
        check_structure(self, beside)
        return self

    @property
    def is_default(self) -> bool:
        """Whether no metric is named, so that the default method is taken."""
        return "metric" not in self.model_fields_set

    def for_wide(self) -> Self:
        """These settings with the windows of the default method for wide models."""
        if "windows" in self.model_fields_set or not self.reconstruct:
            return self
        return self.model_copy(update={"windows": self.windows * WIDE_WINDOWS})
