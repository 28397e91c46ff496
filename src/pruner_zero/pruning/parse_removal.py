"""Parsing which units to remove: `METRIC@channels=0.25`, or options of `prune`."""

from collections.abc import Sequence
from typing import cast, get_args

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.pruning.depth import Blocks
from pruner_zero.pruning.experts import Experts
from pruner_zero.pruning.removal import Removal
from pruner_zero.pruning.structured import Structured
from pruner_zero.settings import OF_BLOCKS, REAP, read_parameters
from pruner_zero.sparsity import STEPS, Pattern

STRUCTURES: tuple[Structure, ...] = get_args(Structure)


def names_units(part: str) -> bool:
    """Whether `part`, the text after the @ of a method, is of the form STRUCTURE[=SHARE]."""
    return part.partition("=")[0] in STRUCTURES


def parse_removal(
    name: str,
    metric: str,
    part: str | None,
    structure: Structure | None,
    sparsity: float | None,
    parameters: str | None,
    multiple_of: int,
    coupled: bool,
) -> Removal | None:
    """The pattern of a method that removes whole units, None for one that removes weights.

    name, metric: the text of the method, and of its metric. part: the text after its @, which may
    name the units and their share. `structure` is used where `part` names no units; `parameters`,
    the size of the remaining model as text, or else `sparsity`, where it names no share.
    multiple_of, coupled: as in `Structured`. Raises PrunerZeroError.
    """
    if part is not None and names_units(part):
        if structure:
            raise PrunerZeroError(f"{name} names its units: leave out @{part}")
        word, _, written = part.partition("=")
        structure = cast(Structure, word)
        if written:
            sparsity, parameters = _share(name, written), None
    fits = {"blocks": metric in OF_BLOCKS, "experts": metric not in OF_BLOCKS}
    if not fits.get(structure or "", metric not in (*OF_BLOCKS, REAP)):
        raise PrunerZeroError(
            f"{metric} does not choose {structure or 'weights'}: whole blocks go by "
            f"{' or '.join(OF_BLOCKS)}, experts by {REAP} or a metric, channels and heads by a "
            "metric"
        )
    if structure is None:
        return None
    left = None if parameters is None else read_parameters(parameters)
    if left is None and sparsity is None:
        raise _no_share(name)
    share = 0.0 if left or sparsity is None else sparsity
    if structure == "blocks":
        return Blocks(share, left, metric)
    if structure == "experts":
        return Experts(share, left, by_metric=metric != REAP)
    return Structured(share, structure, multiple_of, coupled, left)


def check_steps(name: str, pattern: Pattern, steps: Sequence[str]) -> None:
    """Raise PrunerZeroError for a step that changes nothing where `pattern` removes whole units."""
    if not isinstance(pattern, Removal):
        return
    whole = isinstance(pattern, Blocks | Experts)
    idle = [step for step in steps if whole or STEPS[step].changes != "weights"]
    if idle:
        raise PrunerZeroError(
            f"{name} removes whole units, after which +{idle[0]} has nothing to do: leave it out"
        )


def _share(name: str, written: str) -> float:
    """The share of the units to remove."""
    try:
        return float(written)
    except ValueError:
        raise _no_share(name) from None


def _no_share(name: str) -> PrunerZeroError:
    return PrunerZeroError(
        f"{name} does not say which share of its units goes: write it as in @channels=0.25, or "
        "give --sparsity or --parameters"
    )
