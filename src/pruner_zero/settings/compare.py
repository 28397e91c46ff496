"""What `compare` can be told."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from pruner_zero.settings.base import MAIN, Cli
from pruner_zero.settings.calibration import MethodSettings
from pruner_zero.settings.model import TEXT_HELP, ModelSettings
from pruner_zero.settings.prune import METHOD

CLASSICS = "dense,magnitude,wanda,gblm,ria,pruner-zero,sparsegpt"


class CompareSettings(ModelSettings, MethodSettings):
    """All that decides the result of `compare`."""

    panel: ClassVar[str] = "Evaluation"

    methods: Annotated[str, Cli(panel="Options", metavar="METHOD,…", first=True)] = Field(
        CLASSICS,
        description=f"Methods with commas between them, each {METHOD}; dense is the unpruned "
        "model.",
    )
    text: Annotated[str, MAIN] = Field(
        description=f"Text that perplexity is measured on: {TEXT_HELP} Or self, as for "
        "--calibration, of which it is measured on other windows."
    )
    windows_eval: Annotated[int | None, Cli(default="all")] = Field(
        None, ge=1, description="Windows of the text that perplexity is measured on."
    )

    batch_size: int = Field(
        1, ge=1, description="Windows of the text in a forward pass that measures perplexity."
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _joined(cls, methods: Any) -> Any:
        """A list, as YAML and Python write it, is one text like the command line's."""
        listed = isinstance(methods, (list, tuple)) and all(isinstance(m, str) for m in methods)
        return ",".join(methods) if listed else methods
