"""The settings of `search`."""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from pruner_zero.devices import CPU, find_devices
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.masked_model import Update
from pruner_zero.evolution.racing import Racing
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.execution import EXECUTORS, Workers
from pruner_zero.settings import CalibrationSettings, ModelSettings, SparsitySettings
from pruner_zero.sparsity import Pattern, Scope, SemiStructured, Unstructured, parse_pattern

JudgeDtype = Literal["auto", "float32", "bfloat16"]


class SearchSettings(ModelSettings, SparsitySettings, CalibrationSettings):
    """Everything that decides what a search finds, when it stops, and how it is run.

    A run can only be resumed with the same settings, except for the budget and the way the work
    is spread (`LIMITS`), which do not change what is found within the budget.

    search_text: the text that candidates are judged on; by default the second half of the
    calibration text, of which statistics then see the first half only. near, few_share, margin:
    see `Racing`. search_windows, few_windows: how many windows the two expensive rungs use.
    sampled_weights: how many weights the closed-form error uses, in rows of every matrix.
    update: the weight update that follows the mask before a candidate is judged. judge_dtype: of
    the forward passes; "auto" is bfloat16 where the processor multiplies it natively
    (benchmarks/judging.md). time_limit: seconds that one judgement of a candidate may take
    before it is rejected. A worker is stopped then; the serial executor checks the time between
    matrices and windows. ray_address, ray_resources: as `RayExecutor` takes them.
    """

    calibration: str
    search_text: str | None = None
    scope: Scope | Literal["any"] | None = None
    update: Update = "none"
    algorithm: str = "default"
    algorithm_settings: dict[str, Any] = Field(default_factory=dict)
    space: SearchSpace | None = None
    seed_metrics: tuple[str, ...] = ()
    search_windows: Annotated[int, Field(ge=1)] = 12
    few_windows: Annotated[int, Field(ge=1)] = 2
    near: Annotated[float, Field(ge=0)] = 0.3
    few_share: Annotated[float, Field(gt=0, le=1)] = 0.15
    margin: Annotated[float, Field(ge=0)] = 0.005
    judge_dtype: JudgeDtype = "auto"
    sampled_weights: Annotated[int, Field(ge=1)] = 8_000_000
    threads: Annotated[int, Field(ge=1)] = 1

    minutes: Annotated[float, Field(gt=0)] | None = None
    evaluations: Annotated[int, Field(ge=1)] | None = None
    target_loss: float | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    executor: str | None = None
    ray_address: str | None = None
    ray_resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    time_limit: Annotated[float, Field(gt=0)] = 600.0

    @field_validator("executor")
    @classmethod
    def _known_executor(cls, name: str | None) -> str | None:
        if name is not None and name not in EXECUTORS:
            raise ValueError(f"no executor: {did_you_mean(name, EXECUTORS)}")
        return name

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"no algorithm: {did_you_mean(name, ALGORITHMS)}")
        return name

    @field_validator("ray_resources", mode="before")
    @classmethod
    def _amounts(cls, given: Any) -> Any:
        """The command line gives `name=amount` texts."""
        if not isinstance(given, list | tuple):
            return given
        if not all(isinstance(text, str) and text.count("=") == 1 for text in given):
            raise ValueError("give each as name=amount, such as num_gpus=1")
        return dict(text.split("=") for text in given)

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.sharing and find_devices(self.placed_on).first != CPU:
            raise PrunerZeroError(
                f"{self.sharing} share the model in main memory, and --device {self.device} has "
                "it elsewhere: choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.minutes is None and self.evaluations is None:
            raise ValueError("give a budget: --minutes 30 or --evaluations 1000")
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
        if self.pattern is not None and not isinstance(self.zeros, SemiStructured):
            raise ValueError(
                f"--pattern is '{self.pattern}': a search takes N:M such as 2:4, or a share as "
                "--sparsity"
            )
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
    def zeros(self) -> Pattern:
        """The pattern that candidates are judged under; the scope is the candidate's."""
        if self.pattern is not None:
            return parse_pattern(self.pattern)
        return Unstructured(self.sparsity or 0.0)

    @property
    def search_space(self) -> SearchSpace:
        """The given space, or that of the algorithm, with the comparison groups asked for.

        Under N:M weights compete in groups of M, and the scope has no effect.
        """
        space = self.space or ALGORITHMS[self.algorithm].space
        if self.pattern is not None:
            return space.model_copy(update={"scopes": ("row",)})
        scopes = space.scopes
        if self.scope not in (None, "any"):
            scopes = (cast(Scope, self.scope),)
        return space.model_copy(update={"scopes": scopes})

    @property
    def racing(self) -> Racing:
        """Which candidates climb. The published search judges every one on all windows."""
        return Racing(self.near, self.few_share, self.margin, direct=self.algorithm == "published")

    @property
    def budget(self) -> str:
        """The budget in words, such as "30 min or 1000 evaluations"."""
        minutes = None if self.minutes is None else f"{self.minutes:g} min"
        evaluations = None if self.evaluations is None else f"{self.evaluations} evaluations"
        return " or ".join(part for part in (minutes, evaluations) if part)

    @property
    def spread(self) -> Workers:
        """How the judging of candidates is spread."""
        return Workers(
            self.workers, self.threads, self.time_limit, self.ray_address, self.ray_resources
        )

    def identity(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run that it resumes."""
        return self.model_dump(mode="json", exclude=LIMITS)


LIMITS = {
    "minutes",
    "evaluations",
    "target_loss",
    "patience",
    "workers",
    "executor",
    "device",
    "time_limit",
    "ray_address",
    "ray_resources",
}
