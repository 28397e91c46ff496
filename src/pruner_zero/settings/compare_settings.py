"""The settings of `compare`."""

from typing import Annotated, ClassVar

from pydantic import Field

from pruner_zero.settings.base import MAIN, TEXT_HELP, Cli, CommaSeparated, ModelSettings
from pruner_zero.settings.calibration import (
    CalibrationSettings,
    SparsitySettings,
    WindowSettings,
)
from pruner_zero.settings.prune_settings import BLOCK_INFLUENCE, METHOD, REAP

CLASSICS = "dense,magnitude,wanda,gblm,ria,pruner-zero,sparsegpt"


class CompareSettings(ModelSettings, WindowSettings, CalibrationSettings, SparsitySettings):
    """All that decides the result of `compare`."""

    panel: ClassVar[str] = "Evaluation"

    methods: Annotated[CommaSeparated, Cli(panel="Options", metavar="METHOD,…", first=True)] = (
        Field(
            CLASSICS,
            description=f"Methods with commas between them, each {METHOD}, at whose end +distill=N "
            "adds N steps of distillation; dense is the unpruned model, default what prune does "
            "without a metric. METRIC@channels=0.25 and METRIC@heads=0.25 remove this share of "
            f"units as prune --structure does, {BLOCK_INFLUENCE}@blocks=0.25 of blocks, "
            f"{REAP}@experts=0.25 and METRIC@experts=0.25 of experts. "
            'The name of a file that has commas stands in double quotes: "a,b.json"+obs.',
        )
    )
    text: Annotated[str, MAIN] = Field(
        description=f"Text that perplexity is measured on: {TEXT_HELP} Or self, as for "
        "--calibration, with other windows of that text."
    )
    windows_eval: Annotated[int | None, Cli(default="all")] = Field(
        None, ge=1, description="Windows of the text that perplexity is measured on."
    )
