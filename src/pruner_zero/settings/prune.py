"""What `prune` can be told."""

from typing import Annotated, ClassVar

from pydantic import Field

from pruner_zero.settings.base import MAIN, Cli
from pruner_zero.settings.calibration import MethodSettings
from pruner_zero.settings.model import ModelSettings

METHOD = "METRIC[@SCOPE][@ALLOCATION][+STEPS]"


class PruneSettings(ModelSettings, MethodSettings):
    """All that decides the result of `prune`."""

    panel: ClassVar[str] = "What follows the mask"

    metric: Annotated[str, Cli(panel="Options", first=True)] = Field(
        "wanda",
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
        description="Change the kept weights to make up for the pruned ones: none; obs, "
        "SparseGPT's sweep; obs-iter, SparseGPT's sweep, which chooses the mask by the metric; "
        "exact, least squares.",
    )
    asymmetric: Annotated[bool, MAIN] = Field(
        False,
        description="Swaps and updates aim at the outputs of the dense model, and so make up for "
        "what earlier blocks lost too.",
    )
    allocation: Annotated[
        str | None, Cli(panel="What is pruned", default="the metric's own, else uniform")
    ] = Field(
        None,
        description="Share of zeros in each matrix: uniform; owl or error, rules that look at "
        "statistics; or a JSON file of shares.",
    )
    offload: Annotated[bool, Cli(panel=ModelSettings.panel)] = Field(
        False, description="Leave the model on disk and read one block at a time."
    )
    save_mask: Annotated[bool, Cli(panel="Files and output")] = Field(
        False, description="Also save the mask, one bit a weight, to `masks` in the output folder."
    )
