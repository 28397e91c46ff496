"""The settings of `search`."""

from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pruner_zero.devices import CPU, find_devices
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.racing import Racing
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.execution import EXECUTORS, Workers
from pruner_zero.plugins import Registry
from pruner_zero.settings.search import SearchOptions
from pruner_zero.settings.units import check_structure, read_parameters
from pruner_zero.sparsity import STEPS, Pattern, SemiStructured, Unstructured
from pruner_zero.structure.units import Structured

# Fields of the space that the published algorithm does not take from it.
_PUBLISHED = ("operators", "max_size", "max_depth", "idle")


class SearchSettings(SearchOptions):
    """Everything that decides what a search finds, when it stops, and how it is run.

    A run can only be resumed with the same settings, except for the budget and the way the work
    is spread (`MAY_CHANGE`). Of these only a shorter time limit can change which candidates are
    rejected. ray_address, ray_resources: as `RayExecutor` takes them.
    """

    space: SearchSpace | None = Field(
        None, description="Operators, terminals and sizes of candidates; the algorithm's if None."
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """With units, the consumer matrix is solved anew, unless the settings say otherwise.

        What `space` leaves out is that of the algorithm's space.
        """
        if not isinstance(given, dict):
            return given
        if given.get("structure") and given.get("update") is None:
            given = {**given, "update": "exact"}
        space = given.get("space")
        if isinstance(space, SearchSpace):
            space = {name: getattr(space, name) for name in space.model_fields_set}
        name = str(given.get("algorithm") or "default")
        if not isinstance(space, dict) or name not in ALGORITHMS:
            return given
        return {**given, "space": {**ALGORITHMS[name].space.model_dump(), **space}}

    @field_validator("executor", "algorithm", "update")
    @classmethod
    def _registered(cls, name: str | None, info: ValidationInfo) -> str | None:
        kinds: dict[str | None, Registry[Any]]
        kinds = {"executor": EXECUTORS, "algorithm": ALGORITHMS, "update": STEPS}
        registry, none = kinds[info.field_name], ("none",) if info.field_name == "update" else ()
        if name is not None and name not in none and name not in registry:
            raise ValueError(f"no {info.field_name}: {did_you_mean(name, (*none, *registry))}")
        return name

    @field_validator("final_windows")
    @classmethod
    def _compares(cls, count: int) -> int:
        if count == 1:
            raise ValueError("one window has no interval: choose 2 or more, or 0 for no final race")
        return count

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.sharing and find_devices(self.placed_on).first != CPU:
            raise PrunerZeroError(
                f"{self.sharing} share the model in main memory, and --device {self.device} puts "
                "it elsewhere: leave out one of the two"
            )
        scope = () if self.scope == "any" else ("scope",)
        check_structure(self, ("pattern", *scope, "include", "exclude"))
        if self.pattern is not None and self.scope not in ("any", "row"):
            raise ValueError(
                f"--pattern {self.pattern} says which weights compete: leave out --scope"
            )
        for name in _PUBLISHED if self.algorithm == "published" and self.space else ():
            if getattr(self.space, name) != getattr(PUBLISHED_SPACE, name):
                raise ValueError(
                    f"the published algorithm has its own {name}: leave it out of `space`"
                )
        scopes = () if self.space is None else self.space.scopes
        if "unit" in scopes and not self.structure:
            raise ValueError("the scope unit of `space` is of units: add --structure")
        if not self.structure and (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
        if self.parameters is None and not self.zeros.sparsity:
            raise ValueError("no weight becomes zero: choose a --sparsity above 0, such as 0.5")
        return self

    @property
    def sharing(self) -> str | None:
        """The option by which several processes judge candidates; None where one process does."""
        if self.executor is not None:
            return None if self.executor == "serial" else f"--executor {self.executor}"
        return "--workers" if (self.workers or 1) > 1 else None

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of `load_model`; the device is `placed_on`."""
        return {**super().loading, "device": self.placed_on}

    @property
    def placed_on(self) -> str:
        """`device`, where "auto" is the CPU for a model that several processes share."""
        return "cpu" if self.sharing and self.device == "auto" else self.device

    @property
    def zeros(self) -> Pattern:
        """The pattern that candidates are judged under; the scope is the candidate's.

        A pattern of units has to be fitted to a model (`Structured.fit`).
        """
        if self.structure is not None:
            size = None if self.parameters is None else read_parameters(self.parameters)
            share = self.sparsity or 0.0
            return Structured(share, self.structure, self.multiple_of, parameters=size)
        if self.pattern is not None:
            return SemiStructured.parse(self.pattern)
        return Unstructured(self.sparsity or 0.0)

    @property
    def search_space(self) -> SearchSpace:
        """The given space, or that of the algorithm, with the comparison groups asked for.

        Under N:M weights compete in groups of M, and the scope has no effect. Units compete within
        their block.
        """
        space = self.space or ALGORITHMS[self.algorithm].space
        scope = "unit" if self.structure else "row" if self.pattern else self.scope
        scopes = space.scopes if scope == "any" else (scope,)
        return space.model_copy(update={"scopes": scopes})

    @property
    def racing(self) -> Racing:
        """Which candidates climb. The published search judges every one on all windows."""
        return Racing(direct=self.algorithm == "published")

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
        return self.model_dump(mode="json", exclude=MAY_CHANGE)


# The settings that a resumed run need not share with the run that it resumes.
MAY_CHANGE = {
    *("minutes", "evaluations", "workers", "executor", "device"),
    *("time_limit", "ray_address", "ray_resources"),
}
