"""The notation of recipes: `METRIC[@SCOPE][+STEPS]`, where units go `METRIC@channels=0.25`."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast, get_args

from pruner_zero.choices import SOLD, Scope, Structure
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.metric.metric import NAMED, Metric
from pruner_zero.pruning.recipe import SPARSEGPT, SPARSEGPT_SCORE, Recipe, Scored
from pruner_zero.settings.calibration import read_parameters
from pruner_zero.settings.prune_settings import BLOCK_INFLUENCE, REAP, RULED, RULES, TOKEN_COUNT
from pruner_zero.sparsity.pattern import SCOPES, Pattern
from pruner_zero.sparsity.selection import SemiStructured, Unstructured
from pruner_zero.sparsity.steps.step import STEPS, in_order
from pruner_zero.structure.cut import Cut

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
# Rules that choose units in the place of a metric.
_RULES = {rule: structure for structure, rule in RULES.items()}

# The text before its last step, the name of the step, and its amount.
_STEP = re.compile(r"(.*)\+\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:=\s*(-?\w+)\s*)?", re.DOTALL)
# Before the masks of a block, not after them.
PERMUTE = "permute"
# Steps whose amount is named: what is counted, and an example.
_COUNTED = {"distill": ("steps of distillation", 40), "reconstruct": ("passes", 4)}


def parse_recipe(
    text: str,
    *,
    sparsity: float | None = None,
    pattern: str | Pattern | None = None,
    scope: Scope | None = None,
    update: str | None = None,
    refine: bool = False,
    reconstruct: int | None = None,
    distill: int | None = None,
    structure: str | None = None,
    parameters: str | None = None,
    units: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Read `METRIC[@SCOPE][+permute][+STEP]…[+reconstruct=N][+distill=N]`.

    METRIC is a name, an expression or a tree file, STEP a name of `STEPS`, or none for no update
    where the method would have one. Options are used where the text says nothing; a scope in a
    tree file comes after both, and then "row". `sparsegpt` is its score in blocks of columns with
    its update; with another update it keeps the mask that its sweep chooses, on the Hessian of that
    update.

    Where whole units are removed, their kind replaces the scope, with their share if it is not
    `sparsity`, as in `wanda@channels=0.25`. `parameters`, such as "0.75" or "100M", has precedence
    over `sparsity`; units: the options of their kind, multiple_of, tokens, keep and scripts, as in
    `PruneSettings`. For weights exactly one of sparsity in [0, 1) and pattern, which is an N:M such
    as "2:4" or any Pattern and leaves no choice of scope. Raises PrunerZeroError.
    """
    name = text.strip()
    asked = {"reconstruct": reconstruct, "distill": distill}
    rest, written, amounts = _split_steps(name, asked)
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
    # Without a kind of units, a size is that of a budget, for which `prune` names widths.
    if structure or (parameters and "widths" in units):
        left = None if parameters is None else read_parameters(parameters)
        if left is None and sparsity is None and not units.get("tokens"):
            raise _no_share(name)
        folds = "none" not in (*written, update)
        cut = _cut(structure, 0.0 if left else sparsity or 0.0, left, body, folds, units)
        # These are of weights; blocks have taken their update.
        sparsity, pattern, scope, part = cut.sparsity, None, None, None
        update = None if structure == "blocks" else update
    if (sparsity is None) == (pattern is None):
        raise PrunerZeroError("give either --sparsity, such as 0.5, or --pattern, such as 2:4")
    metric = None
    if cut is None or cut.rule is None:
        metric = Metric.of(SPARSEGPT_SCORE if body == SPARSEGPT else body)
    default = ("obs" if body == SPARSEGPT else None) if cut is None else cut.update
    permute = PERMUTE in written
    written = [step for step in written if step != PERMUTE]
    names = _with_update(name, written, update, default or "none")
    steps = in_order(["refine", *names] if refine else names)
    idle = [s for s in steps if not cut.update or STEPS[s].changes != "weights"] if cut else []
    if idle := [*[PERMUTE] * bool(cut and permute), *idle]:
        raise PrunerZeroError(
            f"{name} removes whole units, after which +{idle[0]} has nothing to do: leave it out"
        )
    masks = None
    if metric is not None:
        group = part or scope
        if pattern is not None:
            zeros = SemiStructured.parse(pattern) if isinstance(pattern, str) else pattern
            if group not in (None, "row"):
                raise PrunerZeroError(
                    f"{name} at {zeros}: the pattern says what competes, so leave out scope "
                    f"'{group}'"
                )
        else:
            if not group and cut is None:
                check_compares_weights(name, metric)
            fallback = "block" if body == SPARSEGPT else "row"
            # A cut has a pattern of its own, once it is fitted to a model.
            chosen = "row" if cut else group or metric.scope or fallback
            zeros = Unstructured(sparsity or 0.0, cast(Scope, chosen))
        masks = Scored(metric, zeros)
    return Recipe(
        name,
        masks,
        steps=steps,
        permute=permute,
        reconstruct=amounts["reconstruct"],
        cut=cut,
        distill=amounts["distill"],
    )


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
        return Vocabulary(sparsity, parameters, units.get("tokens"), words, named)
    several, multiple = structure is None or "," in structure, units.get("multiple_of", 32)
    widths = units.get("widths", "equal")
    if several or widths == "free":
        from pruner_zero.structure.budget import Budget

        kinds = structure.split(",") if structure else SOLD
        ordered = tuple(kind for kind in SOLD if kind in kinds)
        return Budget(
            sparsity, "units", multiple, parameters, (), (), ordered, not structure, widths
        )
    from pruner_zero.structure.units import EqualWidths

    return EqualWidths(sparsity, cast(Structure, structure), multiple, parameters)


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


def _split_steps(
    text: str, asked: Mapping[str, int | None]
) -> tuple[str, list[str], dict[str, int]]:
    """The text without the steps it ends in; their names, and the amounts of counted ones.

    "none" is among the names. asked: amounts by options, used where the text does not name the
    step. Raises PrunerZeroError, also for a name that is no step after a scope or the name of a
    metric.
    """
    rest, steps, amounts = text, list[str](), dict.fromkeys(_COUNTED, 0)
    while written := _STEP.fullmatch(rest):
        before, step, amount = written.groups()
        if step in _COUNTED and not steps:
            if amount is None or not amount.isdecimal():
                counted, example = _COUNTED[step]
                raise PrunerZeroError(f"{text}: say how many {counted}, as in +{step}={example}")
            amounts[step] = int(amount)
        elif amount is None and (step in ("none", PERMUTE) or step in STEPS):
            steps.insert(0, step)
        elif amount is None and (_last_part(before)[1] or before.strip() in {*NAMED, SPARSEGPT}):
            # No expression holds the name of a metric, or goes on after a scope.
            near = did_you_mean(step, (PERMUTE, *STEPS))
            raise PrunerZeroError(f"unknown step '{step}': {near}")
        else:
            break
        rest = before.rstrip()
    for step, number in asked.items():
        if number is not None and amounts[step] not in (0, number):
            raise PrunerZeroError(
                f"{text} names +{step}={amounts[step]}: leave it out, or --{step} {number}"
            )
        amounts[step] = number or amounts[step]
    return rest, steps, amounts


def _with_update(name: str, steps: list[str], option: str | None, default: str) -> list[str]:
    """The steps that are written, and the update of the option or the default where none is."""
    if option not in (None, "none") and option not in STEPS:
        updates = [name for name, step in STEPS.items() if step.option == "update"]
        raise PrunerZeroError(f"--update {option} is unknown: {did_you_mean(option, updates)}")
    written = [step for step in steps if step == "none" or STEPS[step].option == "update"]
    if len(written) > 1:
        raise PrunerZeroError(f"{name} names {len(written)} updates: keep one of them")
    if written and option not in (None, written[0]):
        raise PrunerZeroError(
            f"{name} names its update: leave out --update {option}, or +{written[0]}"
        )
    update = written[0] if written else option or default
    others = [step for step in steps if step not in written]
    return others if update == "none" else [*others, update]


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
