"""The settings of `search`."""

import os
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruner_zero.choices import SELF, Scope
from pruner_zero.settings.base import MAIN, Cli, ModelSettings, Settings
from pruner_zero.settings.calibration import (
    CALIBRATION_HELP,
    SHARES,
    CalibrationSettings,
    SizeSettings,
    SparsitySettings,
    Texts,
    WindowSettings,
    check_structure,
)


class SearchSettings(
    ModelSettings, SparsitySettings, WindowSettings, CalibrationSettings, SizeSettings
):
    """Everything that decides what a search finds, when it stops, and how it is run.

    A run can only be resumed with the same settings, except for the budget and the way the work
    is spread (`MAY_CHANGE`). space: some fields of `SearchSpace`; the others are those of the
    algorithm's space.
    """

    panel: ClassVar[str] = "Search"

    others: Annotated[tuple[str, ...], Cli(panel="Options", metavar="MODEL", argument=True)] = (
        Field(
            (),
            description="More models. A metric is judged on all of them, on text that each "
            "writes, by its divergence from the dense model relative to that of Wanda's mask.",
        )
    )
    calibration: Annotated[Texts, SHARES] = Field(SELF, description=CALIBRATION_HELP)
    search_text: Annotated[
        Texts | None,
        replace(SHARES, default="the second half of the calibration text; more text by self"),
    ] = Field(
        None, description="Text that candidates are judged on: as --calibration, several texts too."
    )
    minutes: Annotated[float | None, MAIN] = Field(
        None,
        gt=0,
        description="Stop after this many minutes, without those for text and statistics "
        "before the first candidate; or give --evaluations.",
    )
    evaluations: Annotated[int | None, MAIN] = Field(
        None, ge=1, description="Judge at most this many distinct candidates."
    )
    scope: Annotated[Scope | Literal["any"], MAIN] = Field(
        "any",
        description="Weights that are compared with each other: those of a row, of a block of "
        "128 columns, of a matrix, or of the whole model (global), or any: the search chooses.",
    )
    structure: Annotated[Literal["channels", "heads"] | None, Cli(panel="Options")] = Field(
        None,
        description="Search for a metric that ranks whole units, which prune --structure removes.",
    )
    seed_metrics: Annotated[tuple[str, ...], Cli(panel="Options", metavar="METRIC")] = Field(
        (), description="Start with a known metric or an expression among the candidates."
    )
    algorithm: str = Field("default", description="default, published or random.")
    algorithm_settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the algorithm, by name."
    )
    space: dict[str, Any] | None = Field(
        None, description="Operators, terminals and sizes of candidates; the algorithm's if None."
    )
    search_windows: int = Field(
        12, ge=1, description="Windows of the search text on the last rung."
    )
    final_windows: int = Field(
        12,
        ge=0,
        description="Fresh windows of the search text on which the best metrics are judged at the "
        "end, for which an eighth of the minutes is kept; 0 for none.",
    )
    workers: Annotated[int | None, Cli(panel="Workers", default="one per core")] = Field(
        None, ge=1, description="Processes or Ray actors that judge candidates."
    )
    ray_address: Annotated[
        str | None, Cli(panel="Workers", default="$RAY_ADDRESS, else this machine alone")
    ] = Field(None, description="Address of a Ray cluster on which candidates are judged.")

    @field_validator("space", mode="before")
    @classmethod
    def _fields(cls, space: Any) -> Any:
        """What a `SearchSpace` was made of, in Python."""
        return space.model_dump(exclude_unset=True) if isinstance(space, Settings) else space

    @field_validator("final_windows")
    @classmethod
    def _compares(cls, count: int) -> int:
        if count == 1:
            raise ValueError("one window has no interval: choose 2 or more, or 0 for no final race")
        return count

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.minutes is None and self.evaluations is None:
            raise ValueError("give a budget: --minutes 30 or --evaluations 1000")
        scope = () if self.scope == "any" else ("scope",)
        check_structure(self, ("pattern", *scope, "include", "exclude"))
        if self.pattern is not None and self.scope not in ("any", "row"):
            raise ValueError(
                f"--pattern {self.pattern} says which weights compete: leave out --scope"
            )
        if not self.structure and (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
        if self.sparsity == 0:
            raise ValueError("no weight becomes zero: choose a --sparsity above 0, such as 0.5")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if len({self.model, *self.others}) <= len(self.others):
            raise ValueError("a model is named twice: name each once")
        return self

    @property
    def sharing(self) -> str | None:
        """The option by which several processes judge candidates; None where one process does."""
        if self.ray_address or os.environ.get("RAY_ADDRESS"):
            return "--ray-address" if self.ray_address else "$RAY_ADDRESS"
        return "--workers" if (self.workers or 1) > 1 else None

    @property
    def placed_on(self) -> str:
        """`device`, where "auto" is the CPU for a model that several processes share."""
        return "cpu" if self.sharing and self.device == "auto" else self.device

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of `load_model`; the device is `placed_on`."""
        return {**super().loading, "device": self.placed_on}

    @property
    def budget(self) -> str:
        """The budget in words, such as "30 min or 1000 evaluations"."""
        minutes = None if self.minutes is None else f"{self.minutes:g} min"
        evaluations = None if self.evaluations is None else f"{self.evaluations} evaluations"
        return " or ".join(part for part in (minutes, evaluations) if part)

    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run that it resumes."""
        return self.model_dump(mode="json", exclude=MAY_CHANGE)


# The settings that a resumed run need not share with the run that it resumes.
MAY_CHANGE = {"minutes", "evaluations", "workers", "device", "ray_address"}
