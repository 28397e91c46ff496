"""The notation of recipes: `METRIC[@SCOPE][+UPDATE]`, where units go `METRIC@channels=0.25`."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast, get_args

from pruner_zero.choices import SOLD, Scope, Structure
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.metric import NAMED, SPARSEGPT_SCORE, Metric
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.settings.calibration import read_parameters
from pruner_zero.settings.prune_settings import BLOCK_INFLUENCE, REAP, RULED, RULES, TOKEN_COUNT
from pruner_zero.sparsity.pattern import SCOPES, Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.sweep import OBS
from pruner_zero.sparsity.update import Update
from pruner_zero.structure.cut import Cut

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
# Rules that choose units in the place of a metric.
_RULES = {rule: structure for structure, rule in RULES.items()}

SPARSEGPT = "sparsegpt"
# The updates that a name chooses.
UPDATES: Mapping[str, Update | None] = MappingProxyType({"none": None, "obs": OBS})

# The text before its last part, the name of that part, and its amount.
_PART = re.compile(r"(.*)\+\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:=\s*(-?\w+)\s*)?", re.DOTALL)
# Parts whose amount is named: what is counted, and an example.
_COUNTED = {"distill": ("steps of distillation", 40), "reconstruct": ("passes", 4)}


def parse_recipe(
    text: str,
    *,
    sparsity: float | None = None,
    pattern: str | Pattern | None = None,
    scope: Scope | None = None,
    update: str | Update | None = None,
    reconstruct: int | None = None,
    distill: int | None = None,
    structure: str | None = None,
    parameters: str | None = None,
    units: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Read `METRIC[@SCOPE][+UPDATE][+reconstruct=N][+distill=N]`.

    METRIC is a name, an expression or a tree file, UPDATE a name of `UPDATES`; the option may be an
    `Update` of the caller's own. Options are used where the text says nothing; a scope in a tree
    file comes after both, and then "row". `sparsegpt` is its score in blocks of columns with its
    update.

    Where whole units are removed, their kind replaces the scope, with their share if it is not
    `sparsity`, as in `wanda@channels=0.25`. `parameters`, such as "0.75" or "100M", has precedence
    over `sparsity`; units: the options of their kind, keep and scripts, as in `PruneSettings`, and
    free, whether blocks may keep different numbers. For weights exactly one of sparsity in [0, 1)
    and pattern, which is an N:M such as "2:4" or any Pattern and leaves no choice of scope. Raises
    PrunerZeroError.
    """
    name = text.strip()
    asked = {"reconstruct": reconstruct, "distill": distill}
    rest, written, amounts = _split_parts(name, asked)
    body, part = _split_scope(rest)
    word, _, amount = (part or "").partition("=")
    if word in STRUCTURES:
        if structure:
            raise PrunerZeroError(f"{name} names its units: leave out @{part}")
        structure = word
        if amount:
            try:
                sparsity, parameters = float(amount), None
            except ValueError:
                raise _no_share(name) from None
    if _RULES[body] != structure if body in _RULES else structure in RULED:
        raise PrunerZeroError(
            f"{body} does not choose {structure or 'weights'}: whole blocks go by "
            f"{BLOCK_INFLUENCE}, tokens by {TOKEN_COUNT}, experts by {REAP} or a metric, channels "
            "and heads by a metric"
        )
    cut = None
    # Without a kind of units, a size is that of a budget, which `prune` alone has.
    if structure or (parameters and "free" in units):
        left = None if parameters is None else read_parameters(parameters)
        if left is None and sparsity is None:
            raise _no_share(name)
        folds = "none" not in (written, update)
        cut = _cut(structure, 0.0 if left else sparsity or 0.0, left, body, folds, units)
        # These are of weights.
        sparsity, pattern, scope, part = cut.sparsity, None, None, None
    if (sparsity is None) == (pattern is None):
        raise PrunerZeroError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
    metric = None
    if cut is None or cut.rule is None:
        metric = Metric.of(SPARSEGPT_SCORE if body == SPARSEGPT else body)
    default = (OBS if body == SPARSEGPT else None) if cut is None else cut.update
    chosen = _update(name, written, update, default)
    if cut and chosen not in (None, cut.update):
        raise PrunerZeroError(
            f"{name} removes whole units, after which +{chosen.name} has nothing to do: leave it "
            "out"
        )
    masks = None
    if metric is not None and cut is not None:
        # A cut has a pattern of its own, once it is fitted to a model.
        masks = Scored(metric, Unstructured(cut.sparsity))
    elif metric is not None:
        fallback: Scope = "block" if body == SPARSEGPT else "row"
        masks = Scored(metric, _zeros(name, metric, sparsity, pattern, part or scope, fallback))
    return Recipe(
        name,
        masks,
        update=chosen,
        reconstruct=amounts["reconstruct"],
        cut=cut,
        distill=amounts["distill"],
    )


def _zeros(
    name: str,
    metric: Metric,
    sparsity: float | None,
    pattern: str | Pattern | None,
    scope: str | None,
    fallback: Scope,
) -> Pattern:
    """The pattern of zeros of weights that compete within `scope`, else where the metric says."""
    if pattern is None:
        if not scope:
            check_compares_weights(name, metric)
        return Unstructured(sparsity or 0.0, cast(Scope, scope or metric.scope or fallback))
    zeros = SemiStructured.parse(pattern) if isinstance(pattern, str) else pattern
    if scope not in (None, "row"):
        raise PrunerZeroError(
            f"{name} at {zeros}: the pattern says what competes, so leave out scope '{scope}'"
        )
    return zeros


def _cut(
    structure: str | None,
    sparsity: float,
    parameters: float | None,
    rule: str,
    folds: bool,
    units: Mapping[str, Any],
) -> Cut:
    """The cut of this kind of units. Raises PrunerZeroError."""
    if structure == "blocks":
        from pruner_zero.structure.blocks import Blocks

        return Blocks(sparsity, parameters, folds=folds)
    if structure == "experts":
        from pruner_zero.structure.experts import Experts

        return Experts(sparsity, parameters, by_metric=rule != REAP)
    if structure == "vocabulary":
        from pruner_zero.structure.vocabulary import Vocabulary
        from pruner_zero.text.corpus import load_corpus
        from pruner_zero.text.scripts import read_scripts

        keep, scripts = units.get("keep"), units.get("scripts")
        words = () if keep is None else tuple(dict.fromkeys(load_corpus(keep).text.split()))
        named = () if scripts is None else read_scripts(scripts)
        return Vocabulary(sparsity, parameters, words, named)
    free = bool(units.get("free"))
    if structure is None or "," in structure or free:
        from pruner_zero.structure.budget import Budget

        kinds = structure.split(",") if structure else SOLD
        ordered = tuple(kind for kind in SOLD if kind in kinds)
        return Budget(
            sparsity, parameters=parameters, kinds=ordered, every=not structure, equal=not free
        )
    from pruner_zero.structure.units import EqualWidths

    return EqualWidths(sparsity, cast(Structure, structure), parameters=parameters)


def check_compares_weights(name: str, metric: Metric) -> None:
    """Raise PrunerZeroError where the search of `metric` compared whole units."""
    if metric.scope == "unit":
        raise PrunerZeroError(
            f"the metric of {name} was found for whole units: add --structure channels or heads, "
            "or choose the weights that it compares by --scope"
        )


def split_methods(text: str) -> list[str]:
    """Split a comma-separated list of methods; commas in parentheses or double quotes do not split.

    The quotes are left out. Raises PrunerZeroError for an empty name.
    """
    parts, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        quoted ^= character == '"'
        depth += 0 if quoted else (character == "(") - (character == ")")
        if character == "," and depth <= 0 and not quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    methods = [part.replace('"', "").strip() for part in parts]
    if not all(methods):
        raise PrunerZeroError(f"an empty name in the list of methods '{text}'")
    return methods


def _split_parts(
    text: str, asked: Mapping[str, int | None]
) -> tuple[str, str | None, dict[str, int]]:
    """The text without the parts it ends in; the update among them, and the amounts of the others.

    asked: amounts by options, used where the text does not name the part. Raises PrunerZeroError,
    also for an unknown name after a scope or the name of a metric.
    """
    rest, update, amounts = text, None, dict.fromkeys(_COUNTED, 0)
    while written := _PART.fullmatch(rest):
        before, part, amount = written.groups()
        if part in _COUNTED and update is None:
            if amount is None or not amount.isdecimal():
                counted, example = _COUNTED[part]
                raise PrunerZeroError(f"{text}: say how many {counted}, as in +{part}={example}")
            amounts[part] = int(amount)
        elif amount is None and part in UPDATES:
            if update is not None:
                raise PrunerZeroError(f"{text} names two updates: keep one of them")
            update = part
        elif amount is None and (_last_part(before)[1] or before.strip() in {*NAMED, SPARSEGPT}):
            # No expression holds the name of a metric, or goes on after a scope.
            raise PrunerZeroError(f"unknown update '{part}': {did_you_mean(part, UPDATES)}")
        else:
            break
        rest = before.rstrip()
    for part, number in asked.items():
        if number is not None and amounts[part] not in (0, number):
            raise PrunerZeroError(
                f"{text} names +{part}={amounts[part]}: leave it out, or --{part} {number}"
            )
        amounts[part] = number or amounts[part]
    return rest, update, amounts


def _update(
    name: str, written: str | None, option: str | Update | None, default: Update | None
) -> Update | None:
    """The update that is written, else that of the option, else the default."""
    if isinstance(option, str) and option not in UPDATES:
        raise PrunerZeroError(f"--update {option} is unknown: {did_you_mean(option, UPDATES)}")
    if written and option not in (None, written):
        raise PrunerZeroError(
            f"{name} names its update: leave out --update {option}, or +{written}"
        )
    if isinstance(option, Update):
        return option
    named = written or option
    return UPDATES[named] if named else default


def _split_scope(body: str) -> tuple[str, str | None]:
    """The text without the `@…` part that it ends in, and the scope or units in that part."""
    before, part = _last_part(body)
    if part is None:
        return body, None
    if part not in SCOPES and part.partition("=")[0] not in STRUCTURES:
        near = did_you_mean(part, (*SCOPES, *STRUCTURES))
        raise PrunerZeroError(f"unknown scope '{part}': {near}")
    if _last_part(before)[1] is not None:
        raise PrunerZeroError(f"'@{part}' is one too many: keep one scope")
    return before, part


def _last_part(body: str) -> tuple[str, str | None]:
    """The text before the last `@…` part, and that part."""
    before, at, after = body.rpartition("@")
    word = re.fullmatch(r"[A-Za-z]+(=[^\s@]*)?", after.strip()) if at else None
    return (before.rstrip(), word[0]) if word else (body, None)


def _no_share(name: str) -> PrunerZeroError:
    return PrunerZeroError(
        f"{name} does not say which share of its units goes: write it as in @channels=0.25, or "
        "give --sparsity or --parameters"
    )
