"""The settings of `search`."""

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

_RUNGS = Cli(panel="Rungs")
_WORKERS = Cli(panel="Workers")


class SearchSettings(
    ModelSettings, SparsitySettings, WindowSettings, CalibrationSettings, SizeSettings
):
    """Everything that decides what a search finds, when it stops, and how it is run.

    A run can only be resumed with the same settings, except for the budget and the way the work
    is spread (`MAY_CHANGE`). Of these only a shorter time limit can change which candidates are
    rejected. ray_address, ray_resources: as `RayExecutor` takes them. space: some fields of
    `SearchSpace`; the others are those of the algorithm's space.
    """

    panel: ClassVar[str] = "Search"

    others: Annotated[tuple[str, ...], Cli(panel="Options", metavar="MODEL", argument=True)] = (
        Field(
            (),
            description="More models. A metric is judged on all of them, on text that each "
            "writes, by its divergence from the dense model relative to that of Wanda's mask.",
        )
    )
    fitness: Literal["mean", "worst"] = Field(
        "mean", description="Of several models, their mean counts, or the worst of them."
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
    update: Annotated[str, Cli(default="none, exact with --structure")] = Field(
        "none",
        description="Weight update after which candidates are judged: none; obs, SparseGPT's "
        "sweep; exact, least squares.",
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
    few_windows: Annotated[int, _RUNGS] = Field(
        2, ge=1, description="Windows of the search text on the rung before the last."
    )
    judge_dtype: Annotated[Literal["auto", "float32", "bfloat16"], _RUNGS] = Field(
        "auto", description="Type of the forward passes; auto is bfloat16 where it is native."
    )
    sampled_weights: Annotated[int, _RUNGS] = Field(
        8_000_000, ge=1, description="Weights that the closed-form error is computed on."
    )
    workers: Annotated[int | None, Cli(panel="Workers", default="one per core")] = Field(
        None, ge=1, description="Processes or Ray actors that judge candidates."
    )
    threads: Annotated[int, _WORKERS] = Field(
        1, ge=1, le=1024, description="CPU threads of each worker."
    )
    executor: Annotated[
        str | None, Cli(panel="Workers", default="processes for several workers, else serial")
    ] = Field(None, description="serial, processes, ray or a plug-in's.")
    time_limit: Annotated[float, _WORKERS] = Field(
        600.0,
        gt=0,
        le=1e7,
        description="Seconds that one judgement may take before its candidate is rejected.",
    )
    ray_address: Annotated[
        str | None, Cli(panel="Workers", default="$RAY_ADDRESS, else this machine")
    ] = Field(None, description="Address of the Ray cluster, with --executor ray.")
    ray_resources: Annotated[
        dict[str, Annotated[float, Field(ge=0)]], Cli(panel="Workers", metavar="NAME=AMOUNT")
    ] = Field(
        default_factory=dict,
        description="Resources that each Ray worker needs, such as num_cpus=2.",
    )

    @field_validator("ray_resources", mode="before")
    @classmethod
    def _amounts(cls, resources: Any) -> Any:
        """The command line gives `name=amount` texts."""
        if not isinstance(resources, list | tuple):
            return resources
        if not all(isinstance(text, str) and text.count("=") == 1 for text in resources):
            raise ValueError("give each as name=amount, such as num_gpus=1")
        return dict(text.split("=") for text in resources)

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

    @model_validator(mode="before")
    @classmethod
    def _follow_units(cls, values: Any) -> Any:
        """With units, the consumer matrix is solved anew, unless the settings say otherwise."""
        if isinstance(values, dict) and values.get("structure") and values.get("update") is None:
            return {**values, "update": "exact"}
        return values

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
        if not self.others:
            self.refuse(("fitness",), "a second model")
        if len({self.model, *self.others}) <= len(self.others):
            raise ValueError("a model is named twice: name each once")
        return self

    @property
    def sharing(self) -> str | None:
        """The option by which several processes judge candidates; None where one process does."""
        if self.executor is not None:
            return None if self.executor == "serial" else f"--executor {self.executor}"
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
MAY_CHANGE = {
    *("minutes", "evaluations", "workers", "executor", "device"),
    *("time_limit", "ray_address", "ray_resources"),
}
