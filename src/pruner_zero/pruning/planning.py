"""From the settings of `prune` to the recipe for one model."""

from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from typing import Any

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.metric import Metric
from pruner_zero.models.gguf_source import GgufSource
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.progress import note
from pruner_zero.pruning.default import (
    DEFAULT,
    WANDA,
    default_beside,
    default_of_units,
    metric_of_units,
)
from pruner_zero.pruning.notation import check_compares_weights, parse_recipe
from pruner_zero.pruning.recipe import Recipe, Text
from pruner_zero.settings.base import name_of, names_of
from pruner_zero.settings.calibration import TOKENS
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.structure.budget import Budget, why_equal
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.units import CoupledUnits

# The settings that `parse_recipe` takes under their names.
_OPTIONS = (*("sparsity", "scope", "structure", "parameters", "reconstruct", "distill"),)
# Those of one kind of unit.
_OF_UNITS = ("keep", "scripts")


def read_recipe(
    model: Any,
    metric: str | Metric | None,
    calibration: Any,
    config: Any,
    settings: Mapping[str, Any],
) -> tuple[PruneSettings, Recipe, bool]:
    """The settings of a call of `prune`, what they say, and whether the default adds to that.

    It does where no metric is named, and then its masks are missing: those of Wanda stand in their
    place. It does, too, where a search found the metric, a tree file or a `Metric`, and no option
    says what follows the mask. Raises PrunerZeroError.
    """
    pattern, update = settings.get("pattern"), settings.get("update")
    values = {
        **settings,
        "pattern": None if pattern is None else str(pattern),
        "update": getattr(update, "name", update),
        "model": name_of(model),
        "metric": None if metric is None else str(getattr(metric, "expression", metric)),
        "calibration": names_of(calibration),
    }
    checked = read_settings(PruneSettings, values, config)
    if isinstance(metric, Metric) and not (checked.scope or checked.pattern or checked.structure):
        check_compares_weights(str(metric), metric)
        checked = checked.model_copy(update={"scope": metric.scope})
    zeros = pattern if isinstance(pattern, Pattern) else checked.pattern
    units = {name: getattr(checked, name) for name in _OF_UNITS}
    units["free"] = checked.metric is None
    options = {name: getattr(checked, name) for name in _OPTIONS}
    options["update"] = checked.update if isinstance(update, str | None) else update
    named = checked.metric
    if named is None:
        named = metric_of_units(checked.structure) if checked.is_smaller else WANDA
    recipe = parse_recipe(named, pattern=zeros, units=units, **options)
    if recipe.cut and not checked.is_smaller:
        raise PrunerZeroError(
            f"{recipe.name} removes whole units: name them by --structure, and their share by "
            "--sparsity"
        )
    found = isinstance(metric, Metric) or (checked.metric or "").endswith(".json")
    return checked, recipe, checked.metric is None or (found and checked.is_alone)


def plan_recipe(
    settings: PruneSettings,
    said: Recipe,
    completed: bool,
    language_model: LanguageModel,
    source: GgufSource | None = None,
) -> Recipe:
    """The recipe for a model: what `read_recipe` gave, and what the default adds to it.

    completed: whether the default adds anything. source: the file after which the output is made,
    where that is a GGUF file. Raises PrunerZeroError where the units of the model cannot be removed
    as asked.
    """
    said = replace(said, cut=_for_output(said.cut, settings, language_model, source))
    recipe, tokens = said, TOKENS
    if completed:
        if said.cut is None:
            recipe, tokens = _with_default(settings, said, language_model)
        elif said.cut.when == "masks":
            base = default_of_units(find_matrices(language_model.model), said)
            recipe = replace(
                said,
                reconstruct=_first(settings.reconstruct, base.reconstruct),
                distill=_first(settings.distill, base.distill),
            )
            tokens = base.text.tokens if base.text else TOKENS
        elif said.cut.when == "text":
            tokens = 2 * TOKENS
    fitted = recipe.fitted(language_model)
    if fitted.cut and not isclose(fitted.cut.sparsity, recipe.removed().sparsity, abs_tol=1e-6):
        note(f"removing {fitted.cut}")
    windows, seqlen = settings.shape(tokens)
    name = settings.text_name
    text = Text(windows * seqlen, seqlen, name) if needs_text(fitted) else None
    return replace(fitted, text=text)


def _for_output(
    cut: Cut | None,
    settings: PruneSettings,
    language_model: LanguageModel,
    source: GgufSource | None,
) -> Cut | None:
    """The cut that the output can have: without tokens, equal blocks or all heads if it must.

    Raises PrunerZeroError where it cannot have what was asked for.
    """
    model = language_model.model
    if source and isinstance(cut, CoupledUnits):
        cut = replace(cut, multiple=source.multiple(model.config))
    if not isinstance(cut, Budget):
        return cut
    if settings.offload and settings.structure and "vocabulary" in cut.kinds:
        raise PrunerZeroError("--offload cannot remove tokens: leave vocabulary out of --structure")
    if settings.offload:
        cut = replace(cut, kinds=tuple(kind for kind in cut.kinds if kind != "vocabulary"))
    if cut.equal:
        return cut
    said = ""
    for kinds in (cut.kinds, tuple(kind for kind in cut.kinds if kind != "heads")):
        why = why_equal(model, kinds, source)
        if not why:
            if said:
                note(f"{said}: all heads stay")
            return replace(cut, kinds=kinds)
        said = said or why
        if settings.structure:
            break
    note(f"{said}: all blocks keep as many")
    return replace(cut, equal=True)


def needs_text(recipe: Recipe) -> bool:
    """Whether a calibration text is needed."""
    of_text = recipe.cut is not None and recipe.cut.when == "text"
    return bool(recipe.kinds() or recipe.reconstruct or recipe.distill or of_text)


def _with_default(
    settings: PruneSettings, said: Recipe, language_model: LanguageModel
) -> tuple[Recipe, int]:
    """The recipe with the parts of the default that the settings leave open, and its tokens."""
    matrices = find_matrices(language_model.model, settings.include, settings.exclude)
    assert said.pattern is not None
    base = default_beside(matrices, said.pattern, settings.scope)
    by_default = settings.metric is None
    recipe = replace(
        said,
        name=DEFAULT if by_default else said.name,
        masks=base.masks if by_default else said.masks,
        reconstruct=_first(settings.reconstruct, base.reconstruct),
        distill=_first(settings.distill, base.distill),
    )
    return recipe, base.text.tokens if base.text else TOKENS


def _first(asked: int | None, otherwise: int) -> int:
    return otherwise if asked is None else asked
