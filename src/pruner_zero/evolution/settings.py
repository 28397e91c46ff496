"""What a search makes of its settings: the space, the pattern, the workers."""

from pruner_zero.devices import CPU, find_devices
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.evolution.algorithm import ALGORITHMS
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.execution.executor import Workers
from pruner_zero.execution.registry import EXECUTORS
from pruner_zero.settings.read import read_settings
from pruner_zero.settings.search import SearchSettings
from pruner_zero.settings.units import read_parameters
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps.step import STEPS
from pruner_zero.structure.units import Structured

# Fields of the space that the published algorithm does not take from it.
_PUBLISHED = ("operators", "max_size", "max_depth", "idle")


def check_settings(settings: SearchSettings) -> None:
    """Raise PrunerZeroError for unknown names, a bad pattern or space, and a device not shared."""
    known = {"executor": [*EXECUTORS], "algorithm": [*ALGORITHMS], "update": ["none", *STEPS]}
    for option, names in known.items():
        name = getattr(settings, option)
        if name is not None and name not in names:
            raise PrunerZeroError(
                f"--{option} is '{name}': no {option}: {did_you_mean(name, names)}"
            )
    if settings.sharing and find_devices(settings.placed_on).first != CPU:
        raise PrunerZeroError(
            f"{settings.sharing} share the model in main memory, and --device {settings.device} "
            "puts it elsewhere: leave out one of the two"
        )
    space_of(settings)
    pattern_of(settings)


def space_of(settings: SearchSettings) -> SearchSpace:
    """The space of the settings or the algorithm, with the comparison groups asked for.

    Under N:M weights compete in groups of M, and the scope has no effect. Units compete within
    their block. Raises PrunerZeroError for a space that cannot be.
    """
    space = ALGORITHMS[settings.algorithm].space
    if settings.space is not None:
        fields = {**space.model_dump(), **settings.space}
        space = read_settings(SearchSpace, fields, within="space")
        for name in _PUBLISHED if settings.algorithm == "published" else ():
            if getattr(space, name) != getattr(PUBLISHED_SPACE, name):
                raise PrunerZeroError(
                    f"the published algorithm has its own {name}: leave it out of `space`"
                )
        if "unit" in space.scopes and not settings.structure:
            raise PrunerZeroError("the scope unit of `space` is of units: add --structure")
    scope = "unit" if settings.structure else "row" if settings.pattern else settings.scope
    return space if scope == "any" else space.model_copy(update={"scopes": (scope,)})


def pattern_of(settings: SearchSettings) -> Pattern:
    """The pattern that candidates are judged under; the scope is the candidate's.

    A pattern of units has to be fitted to a model (`Structured.of_model`). Raises PrunerZeroError
    for a pattern that cannot be.
    """
    share = settings.sparsity or 0.0
    if settings.structure is not None:
        size = None if settings.parameters is None else read_parameters(settings.parameters)
        return Structured(share, settings.structure, settings.multiple_of, parameters=size)
    return SemiStructured.parse(settings.pattern) if settings.pattern else Unstructured(share)


def workers_of(settings: SearchSettings) -> Workers:
    """How the judging of candidates is spread."""
    return Workers(
        settings.workers,
        settings.threads,
        settings.time_limit,
        settings.ray_address,
        settings.ray_resources,
    )
