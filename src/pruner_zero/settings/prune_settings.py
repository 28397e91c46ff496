"""The settings of `prune`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, get_args

from pydantic import Field, model_validator

from pruner_zero.choices import SOLD, Scope, Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import MAIN, Cli, CommaSeparated, OutputSettings, PathText
from pruner_zero.settings.calibration import (
    LONG,
    SHORT,
    TOKENS,
    CalibrationSettings,
    SizeSettings,
    SparsitySettings,
    are_written,
    check_structure,
    written_of,
)

METHOD = "METRIC[@SCOPE][+UPDATE]"

# The rules that choose whole blocks, tokens and, without a metric, experts; they are no metrics.
BLOCK_INFLUENCE, REAP, TOKEN_COUNT = "block-influence", "reap", "token-count"
RULES: Mapping[Structure, str] = MappingProxyType(
    {"blocks": BLOCK_INFLUENCE, "experts": REAP, "vocabulary": TOKEN_COUNT}
)
# The structures whose units no metric can choose.
RULED: tuple[Structure, ...] = ("blocks", "vocabulary")

# Settings that cannot be combined with --structure.
_BESIDE_STRUCTURE: tuple[str, ...] = ("pattern", "scope", "include", "exclude")


class PruneSettings(OutputSettings, CalibrationSettings, SparsitySettings, SizeSettings):
    """All that decides the result of `prune`."""

    panel: ClassVar[str] = "What follows the mask"

    metric: Annotated[
        str | None, Cli(panel="Options", first=True, default="the best method measured")
    ] = Field(
        None,
        description=f"A name, an expression or a .json tree file, as {METHOD}; `pruner-zero metric "
        "list` shows the names, of which sparsegpt brings its own update. A tree file alone, as a "
        "search writes it, takes the place of the default's masks: what follows them stays. "
        "What is done without it depends on the model: --dry-run shows it.",
    )
    windows: Annotated[
        int | None,
        Cli(
            panel="Options",
            default=f"as many as hold {TOKENS:,} tokens; twice as many where blocks are trained or "
            "tokens are removed, four times in wide models",
        ),
    ] = Field(None, ge=1, description="Calibration windows: pieces of the text of --seqlen tokens.")
    seqlen: Annotated[
        int | None,
        Cli(
            panel=CalibrationSettings.panel,
            default=f"1024; {SHORT} for text that the model writes, and for --structure vocabulary",
        ),
    ] = Field(None, ge=2, description="Tokens in a window.")
    scope: Annotated[
        Scope | None, Cli(panel=SparsitySettings.panel, default="the metric's own, else row")
    ] = Field(
        None,
        description="Weights that are compared with each other: those of a row, of a block of "
        "128 columns, of a matrix, or of the whole model (global).",
    )
    update: Annotated[str | None, Cli(default="the metric's own, else none")] = Field(
        None,
        description="Change the kept weights to compensate for pruned weights: none; obs, "
        "SparseGPT's sweep. With --structure none leaves out the least squares that follow.",
    )
    reconstruct: Annotated[int | None, Cli(default="0 with a name or an expression")] = Field(
        None,
        ge=0,
        description="Then train the weights of each block towards the dense block's outputs, in "
        "this many passes over the calibration windows, before the next block is pruned; with "
        "--distill over the first half of them. Masks are chosen anew meanwhile, but not "
        "after --update or --structure, nor where a matrix has 4096 inputs.",
    )
    distill: Annotated[int | None, Cli(default="0 with a name or an expression")] = Field(
        None,
        ge=0,
        description="Then train the kept weights for this many optimizer steps of about 1024 "
        "tokens towards the dense model's predictions on the calibration windows, of which it has "
        "the second half after --reconstruct.",
    )
    structure: Annotated[
        CommaSeparated | None,
        Cli(panel="Options", metavar="KINDS", default="with --parameters alone: all that compete"),
    ] = Field(
        None,
        description="Remove whole units in place of single weights, so that the model becomes "
        "smaller and faster: channels of the MLPs; heads (key-value heads with the query heads "
        "that share them); blocks (those that change their input the least); experts of a "
        "mixture; or the vocabulary, of which the tokens go that occur least in --calibration. "
        f"Several of {', '.join(SOLD)} compete: those go that cost the predictions the least per "
        "parameter. --sparsity is the share of units of a kind, or give --parameters. Without "
        "--metric every block keeps its own number of channels and heads where the family allows "
        "it, which a folder carries by a modelling file (trust_remote_code), and a .gguf file by "
        "the architecture deci.",
    )
    keep: Annotated[
        PathText | None, Cli(panel=SizeSettings.panel, metavar="FILE", default="none")
    ] = Field(
        None,
        description="With --structure vocabulary: a text file whose words must be encoded as "
        "before; all of their tokens stay.",
    )
    scripts: Annotated[
        CommaSeparated | None, Cli(panel=SizeSettings.panel, metavar="NAMES", default="all")
    ] = Field(
        None,
        description="Scripts that the model writes in, such as Latin,Greek; digits and signs "
        "belong to all. With --structure vocabulary their characters stay, and the smaller model "
        "writes no tokens of others.",
    )
    offload: Annotated[bool, MAIN] = Field(
        False, description="Leave the model on disk and read one block at a time."
    )

    @model_validator(mode="after")
    def _check_structure(self) -> "PruneSettings":
        beside = _BESIDE_STRUCTURE
        unknown = set(self.kinds) - {*get_args(Structure)}
        if unknown or (len(self.kinds) > 1 and {*self.kinds} - {*SOLD}):
            raise PrunerZeroError(
                f"--structure {self.structure}: choose one of {', '.join(get_args(Structure))}, or "
                f"several of {', '.join(SOLD)}, with commas between them"
            )
        if self.structure in RULED and self.metric not in (None, RULES[self.structure]):
            raise PrunerZeroError(
                f"--structure {self.structure} takes no metric: leave out --metric"
            )
        if self.structure and self.update not in (None, "none"):
            raise PrunerZeroError(
                f"--update {self.update} is for zeros and does not fit --structure: leave it out; "
                "none leaves out what corrects the weights that stay"
            )
        if self.structure == "vocabulary":
            beside += ("update", "reconstruct")
        else:
            if self.calibration is not None and not written_of(self.calibration):
                self.refuse(("scripts",), "text that a model writes")
            self.refuse(("keep",), "--structure vocabulary")
        if self.structure in RULES:
            beside += ("offload",)
        check_structure(self, beside, mixed=True)
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that --structure names."""
        return tuple((self.structure or "").split(",")) if self.structure else ()

    @property
    def is_smaller(self) -> bool:
        """Whether whole units are removed."""
        return bool(self.structure or self.parameters)

    @property
    def is_alone(self) -> bool:
        """Whether nothing is said of what follows the mask."""
        asked = (self.update, self.reconstruct, self.distill)
        return all(value is None for value in asked)

    @property
    def text_name(self) -> str:
        """The calibration text in words."""
        if self.calibration is None or are_written(self.calibration):
            return "text that the model writes"
        names = self.calibration
        return names if isinstance(names, str) else ", ".join(names)

    def shape(self, tokens: int) -> tuple[int, int]:
        """The number of calibration windows and the tokens in each.

        tokens: in all, where the number of windows is not asked for.
        """
        written = self.calibration is None or are_written(self.calibration)
        tokenwise = self.structure == "vocabulary" and not written
        seqlen = self.seqlen or (SHORT if written or tokenwise else LONG)
        return self.windows or max(1, tokens // seqlen), seqlen
