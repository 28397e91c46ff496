"""What `search` can be told."""

from functools import cached_property
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from pruner_zero.devices import CPU, find_devices
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.executor import EXECUTORS
from pruner_zero.evolution.masked_model import Update
from pruner_zero.evolution.racing import Racing
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.pruning import Method, parse_method
from pruner_zero.settings import CalibrationSettings, ModelSettings, SparsitySettings
from pruner_zero.sparsity import (
    Allocation,
    Pattern,
    Scope,
    SemiStructured,
    Unstructured,
    parse_pattern,
    read_allocation,
)

AlgorithmName = Literal["default", "published", "random"]
_ALLOCATIONS = ("uniform", "evolved")
JudgeDtype = Literal["auto", "float32", "bfloat16"]


class SearchSettings(ModelSettings, SparsitySettings, CalibrationSettings):
    """All that decides what a search finds, when it stops, and how it is run.

    The budget and how the work is spread (`LIMITS`) do not change what is found up to
    there; everything else does, and a run can only be resumed with the same.

    near, few_share, margin: which candidates climb, see `Racing`. search_windows, few_windows:
    windows of the dearest rung, and how many of them the one before it has. sampled_weights:
    how many weights the closed-form error looks at, in rows of every matrix. update: candidates
    are judged by what is left after the weights that stay were updated so. allocation: how much
    of each matrix candidates prune, "uniform" or a file; or "evolved", which searches it for
    `metric` in place of a metric, the algorithm's settings then being `AllocationSettings`.
    judge_dtype: of the forward passes; "auto" is bfloat16 where the processor multiplies it
    natively (benchmarks/judging.md). time_limit: seconds that one judgement of a candidate may
    take before it is rejected. Workers are stopped then; with the serial executor the clock is
    looked at between matrices and windows. ray_address, ray_resources: of the executor "ray", as
    `RayExecutor` takes them.
    """

    calibration: str
    search_text: str
    scope: Scope | Literal["any"] | None = None
    update: Update = "none"
    allocation: str = "uniform"
    metric: str | None = None
    algorithm: AlgorithmName = "default"
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
        if name not in (None, "ray") and name not in EXECUTORS:
            raise ValueError(f"no executor: {did_you_mean(str(name), ('ray', *EXECUTORS))}")
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
        if self.allocation != "uniform" and self.pattern is not None:
            raise ValueError(
                f"--allocation {self.allocation} shares out a --sparsity: leave it "
                "out with --pattern"
            )
        if self.allocation == "evolved":
            self._check_evolved()
        elif self.metric is not None:
            raise ValueError(
                "--metric belongs to --allocation evolved: add it, or see --seed-metrics"
            )
        if self.shares is not None and not self.search_space.scopes:
            raise ValueError(
                f"--allocation {self.allocation} leaves no global scope, where all matrices "
                "compete: choose another scope or leave it out"
            )
        return self

    def _check_evolved(self) -> None:
        if self.algorithm != "default":
            raise ValueError(f"--allocation evolved goes with no --algorithm {self.algorithm}")
        if self.metric is None:
            return
        if self.space or self.seed_metrics:
            raise ValueError(
                f"--metric {self.metric} is not searched for: leave out space and seed metrics"
            )
        method = self.method
        if method.refine or method.asymmetric or method.update != self.update:
            raise ValueError(
                f"--metric {self.metric}: give METRIC[@SCOPE] alone, and its update as --update"
            )
        if method.allocation != "uniform":
            raise ValueError(f"--metric {self.metric}: leave its allocation out")

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
        """The pattern that candidates are judged under; each brings its own scope."""
        if self.pattern is not None:
            return parse_pattern(self.pattern)
        return Unstructured(self.sparsity or 0.0)

    @cached_property
    def shares(self) -> Allocation | None:
        """What a file says of how much of each matrix is pruned, read once; None without one."""
        if self.allocation in _ALLOCATIONS:
            return None
        if not isfile(self.allocation):
            near = did_you_mean(self.allocation, _ALLOCATIONS)
            raise PrunerZeroError(
                f"--allocation {self.allocation} is neither a file nor known to search: {near}"
            )
        return read_allocation(Path(self.allocation))

    @cached_property
    def method(self) -> Method:
        """The metric and scope under which shares are evolved, read once."""
        return parse_method(
            self.metric or "",
            sparsity=self.sparsity,
            scope=None if self.scope == "any" else self.scope,
            update=None if self.update == "none" else self.update,
        )

    @property
    def terminals(self) -> frozenset[str]:
        """What candidates may look at; and G, by which errors of matrices are compared."""
        own = frozenset(self.search_space.terminals)
        if self.metric is not None:
            own = self.method.metric.needs
        return own | {"G"} if self.allocation == "evolved" else own

    @property
    def search_space(self) -> SearchSpace:
        """The space of the algorithm or the one given, with the comparison groups asked for.

        N:M groups are their own; there the scope decides nothing.
        """
        space = self.space or ALGORITHMS[self.algorithm].space
        if self.pattern is not None:
            return space.model_copy(update={"scopes": ("row",)})
        scopes = space.scopes
        if self.scope not in (None, "any"):
            scopes = (cast(Scope, self.scope),)
        if self.shares is not None:
            scopes = tuple(scope for scope in scopes if scope != "global")
        return space.model_copy(update={"scopes": scopes})

    @property
    def racing(self) -> Racing:
        """How many candidates climb. The published search judges each one fully."""
        return Racing(self.near, self.few_share, self.margin, direct=self.algorithm == "published")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the run it resumes.

        What it does without is left out: runs from before that was there can go on.
        """
        told = self.model_dump(mode="json", exclude=LIMITS)
        for name in OPTIONAL:
            if told[name] == type(self).model_fields[name].default:
                del told[name]
        if self.metric is not None:
            told["tree"] = self.method.metric.to_tree()
        if self.shares is not None:
            told["shares"] = dict(self.shares.sparsity)
        return told


OPTIONAL = ("update", "allocation", "metric")
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
