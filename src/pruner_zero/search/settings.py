"""What `search` can be told."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruner_zero.errors import did_you_mean
from pruner_zero.pruning import CalibrationSettings
from pruner_zero.search.algorithm import ALGORITHMS
from pruner_zero.search.executor import EXECUTORS
from pruner_zero.search.racing import Racing
from pruner_zero.search.space import SearchSpace
from pruner_zero.sparsity import Pattern, Scope, Unstructured, parse_pattern

AlgorithmName = Literal["default", "published", "random"]
JudgeDtype = Literal["auto", "float32", "bfloat16"]


class SearchSettings(CalibrationSettings):
    """All that decides what a search finds, when it stops, and how it is run.

    The budget and how the work is spread (`LIMITS`) do not change what is found up to
    there; everything else does, and a run can only be resumed with the same.

    near, few_share, margin: which candidates climb, see `Racing`. search_windows, few_windows:
    windows of the dearest rung, and how many of them the one before it has. sampled_weights:
    how many weights the closed-form error looks at, in rows of every matrix. judge_dtype: of
    the forward passes; "auto" is bfloat16 where the processor multiplies it natively
    (benchmarks/judging.md).
    """

    search_text: str
    scope: Scope | Literal["any"] | None = None
    algorithm: AlgorithmName = "default"
    algorithm_settings: dict[str, Any] = Field(default_factory=dict)
    space: SearchSpace | None = None
    seed_metrics: tuple[str, ...] = ()
    search_windows: Annotated[int, Field(ge=1)] = 12
    few_windows: Annotated[int, Field(ge=1)] = 2
    near: Annotated[float, Field(ge=0)] = 0.3
    few_share: Annotated[float, Field(gt=0, le=1)] = 0.08
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
    time_limit: Annotated[float, Field(gt=0)] = 600.0
    ray_address: str | None = None
    ray_resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)

    @field_validator("executor")
    @classmethod
    def _known_executor(cls, name: str | None) -> str | None:
        if name not in (None, "ray") and name not in EXECUTORS:
            raise ValueError(f"no executor: {did_you_mean(str(name), ('ray', *EXECUTORS))}")
        return name

    @field_validator("ray_resources", mode="before")
    @classmethod
    def _amounts(cls, given: Any) -> Any:
        """The command line gives `name=amount` texts."""
        if not isinstance(given, list | tuple):
            return given
        if not all(isinstance(one, str) and one.count("=") == 1 for one in given):
            raise ValueError("give each as name=amount, such as num_gpus=1")
        return dict(one.split("=") for one in given)

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.minutes is None and self.evaluations is None:
            raise ValueError("give a budget: --minutes 30 or --evaluations 1000")
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
        return self

    @property
    def zeros(self) -> Pattern:
        """The pattern that candidates are judged under; each brings its own scope."""
        if self.pattern is not None:
            return parse_pattern(self.pattern)
        return Unstructured(self.sparsity or 0.0)

    @property
    def search_space(self) -> SearchSpace:
        """The space of the algorithm or the one given, with the comparison groups asked for.

        N:M groups are their own; there the scope decides nothing.
        """
        space = self.space or ALGORITHMS[self.algorithm].space
        if self.pattern is not None:
            return space.model_copy(update={"scopes": ("row",)})
        if self.scope in (None, "any"):
            return space
        return space.model_copy(update={"scopes": (self.scope,)})

    @property
    def racing(self) -> Racing:
        """How many candidates climb. The published search judges each one fully."""
        return Racing(self.near, self.few_share, self.margin, direct=self.algorithm == "published")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run it resumes."""
        return self.model_dump(mode="json", exclude=LIMITS)


LIMITS = {
    "minutes",
    "evaluations",
    "target_loss",
    "patience",
    "workers",
    "executor",
    "time_limit",
    "ray_address",
    "ray_resources",
}
