"""The settings of `recover`."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from pruner_zero.choices import SELF
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.base import MAIN, TEXT_HELP, Cli, OutputSettings
from pruner_zero.settings.calibration import (
    SELF_HELP,
    SHARES,
    Texts,
    are_written,
    written_of,
)

DEFAULT_MINUTES = 10.0


class RecoverSettings(OutputSettings):
    """All that decides the result of `recover`.

    The weights are loaded and saved in `dtype` and trained in float32. A run with a budget of
    steps alone repeats byte for byte on one thread; a run with a budget of minutes does not, since
    its learning rate follows the clock. A checkpoint holds the seconds that have passed.
    """

    panel: ClassVar[str] = "Training"

    text: Annotated[Texts, SHARES] = Field(
        SELF,
        description=f"Text to train on, of which the last tenth is for validation: {TEXT_HELP} Or "
        f"self: {SELF_HELP.format(model='teacher')}",
    )
    minutes: Annotated[
        float | None, Cli(panel="Options", default=f"{DEFAULT_MINUTES:g} without --steps")
    ] = Field(
        None,
        gt=0,
        description="Stop after this many minutes of training: the learning rate follows the "
        "clock, and a stopped run goes on with the minutes that are left.",
    )
    steps: Annotated[int | None, MAIN] = Field(
        None, ge=1, description="Stop after this many optimizer steps."
    )
    teacher: Annotated[str | None, MAIN] = Field(
        None,
        description="The dense model, for distillation from its logits; needed where prune "
        "--structure removed whole units.",
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="Highest learning rate, as a share of the root mean square of each trained "
        "matrix.",
    )
    batch: int = Field(2, ge=1, description="Windows in an optimizer step.")
    seqlen: int = Field(512, ge=2, description="Tokens in a window.")
    windows: int = Field(96, ge=2, description="Windows that the teacher writes, with --text self.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the window order.")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        resolved = {key: value for key, value in given.items() if value is not None}
        if "minutes" not in resolved and "steps" not in resolved:
            resolved["minutes"] = DEFAULT_MINUTES
        return resolved

    @model_validator(mode="after")
    def _check_effect(self) -> "RecoverSettings":
        writes = written_of(self.text)
        if not writes:
            self.refuse(("windows",), "--text self")
        if writes and self.teacher is None:
            raise PrunerZeroError(
                "there is no text to train on: give one as --text, or the dense model as "
                "--teacher, which then writes it"
            )
        return self

    @property
    def teacher_share(self) -> float | None:
        """The weight of the teacher's part of the loss; the rest is the text's loss.

        The tokens that a teacher draws say no more than the predictions they are drawn from.
        """
        if self.teacher is None:
            return None
        return 1.0 if are_written(self.text) else 0.5
