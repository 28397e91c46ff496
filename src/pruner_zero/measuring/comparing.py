"""`compare`: the perplexity of a model pruned by several methods, with the same statistics."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.calibration.statistics import ForwardStatistic, GradientStatistic, Kind, select
from pruner_zero.calibration.windows import calibration_texts, open_calibration
from pruner_zero.devices import CPU, naming_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.comparison_table import Comparison, TableFile
from pruner_zero.measuring.origin import origin_of
from pruner_zero.measuring.perplexity import perplexity
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.load import as_language_model
from pruner_zero.models.matrices import Matrix, find_blocks, find_matrices, size_of
from pruner_zero.progress import note
from pruner_zero.provenance import measured
from pruner_zero.pruning.checks import check_parameters, check_recipe
from pruner_zero.pruning.default import DEFAULT, WANDA, default_beside
from pruner_zero.pruning.matrix import total_sparsity
from pruner_zero.pruning.notation import parse_recipe, split_methods
from pruner_zero.pruning.planning import needs_text
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.pruning.runner import dense_kinds, run_recipe, takes_all_windows
from pruner_zero.settings.base import name_of, names_of
from pruner_zero.settings.compare_settings import CompareSettings
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.mixture import SelfText, Source, load_text
from pruner_zero.text.token_windows import Windows, consecutive_windows

DENSE = "dense"


@naming_out_of_memory("choose fewer --windows or a shorter --seqlen")
def compare(
    model: str | Path | LanguageModel | Any = None,
    methods: str | Sequence[str] | None = None,
    *,
    calibration: Source | Mapping[Any, float] | None = None,
    text: Source | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Prune `model` by each method in turn, from the same dense weights, and measure each.

    methods: names, expressions or tree files, as a list or with commas between them; `dense` is
    the unpruned model, `default` what `prune` does without a metric. calibration: as `prune` takes
    it. text: the text that perplexity is measured on, or "self". model, calibration, text: None
    where `config` names them. settings: the other fields of `CompareSettings`. config: a YAML file
    of settings; arguments win over it.

    The table is written to `output` after each row. An interrupted table there is continued if
    settings, texts, the model's weights and the version of this program are the same; methods may
    be added. overwrite: replace a table at `output`. Where a method cannot score this model, its
    row has the reason. A model object gets its weights back. Raises PrunerZeroError on wrong
    settings, where a weight is not finite, and where a finished table, or one that cannot be
    continued, is at `output`.
    """
    values = {
        **settings,
        "model": name_of(model),
        "methods": methods,
        "calibration": names_of(calibration),
        "text": name_of(text),
    }
    checked = read_settings(CompareSettings, values, config)
    recipes = {name: _recipe(name, checked) for name in split_methods(checked.methods)}
    file = TableFile.open(output, overwrite)
    resolved = checked.model_dump(mode="json")
    file.check({"settings": resolved})
    texts = calibration_texts(
        checked.calibration if calibration is None else calibration,
        DEFAULT in recipes or any(needs_text(recipe) for recipe in recipes.values() if recipe),
    )
    test_text = load_text(checked.text if text is None else text, role="test")
    if isinstance(test_text, Corpus) and texts and test_text.sha256 in texts.hashes():
        note(
            f"calibration and evaluation use the same text, {test_text.name}: the perplexities are "
            "lower than on other text"
        )
    language_model = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    recipes = {
        name: each and _plan(each, language_model, checked) for name, each in recipes.items()
    }
    check_parameters(
        language_model, find_matrices(language_model.model, checked.include, checked.exclude)
    )
    seqlen, count, seed = checked.seqlen, checked.windows_eval, checked.seed
    if isinstance(test_text, Corpus):
        # Before the model writes a calibration text, because the text may be too short.
        test = consecutive_windows(test_text, language_model.tokenizer, seqlen, count, "-eval")
    elif count is None:
        raise PrunerZeroError(
            "the model can write any number of windows for --text self: give --windows-eval, such "
            "as 24"
        )
    shape = (checked.windows, seqlen)
    windows, store = open_calibration(texts, language_model, shape, seed, cache)
    model_sha256 = store.settings["model"]
    if isinstance(test_text, SelfText) and count:
        # Windows that calibration does not have.
        first = texts.count_self(checked.windows) if texts else 0
        place: dict[str, Any] = {"folder": cache, "fingerprint": model_sha256}
        test = self_windows(
            language_model, count, seqlen, seed, text=test_text, first=first, **place
        )
    # A remark on long windows is made once, by `open_calibration`.
    check_tokens(language_model.model, test.tokens)
    origin = {
        **origin_of(language_model, model_sha256),
        "settings": resolved,
        "calibration": windows.describe() if len(windows) else {},
        "evaluation": test.describe(),
    }
    heads = {name: _head(name, recipe) for name, recipe in recipes.items()}
    table = file.continued(origin, heads)
    earlier = {row["method"]: row for row in table.rows}
    with measured() as cost:
        _calibrate(
            language_model, windows, store, [r for n, r in recipes.items() if n not in earlier]
        )
    costs = {f"calibration_{key}": value for key, value in cost.to_json().items()}
    table = Comparison([], {**costs, **table.provenance}, complete=False)
    parameters = [p for block in find_blocks(language_model.model) for p in block.parameters()]
    # In main memory, because a model may fill its device.
    dense = [(parameter, parameter.data.to(CPU, copy=True)) for parameter in parameters]
    for name, recipe in recipes.items():
        if name in earlier:
            row = earlier[name]
        else:
            note(f"{name} …")
            try:
                row = heads[name] | _measure(language_model, recipe, windows, test, store, checked)
            finally:
                for parameter, weights in dense:
                    parameter.data.copy_(weights)
        table.rows.append(row)
        table = replace(table, complete=len(table.rows) == len(recipes))
        file.write(table)
    return table


def _recipe(name: str, settings: CompareSettings) -> Recipe | None:
    """The recipe of this name with the settings, None for the unpruned model.

    The masks of `default` depend on the model: those of Wanda stand in their place. Raises
    PrunerZeroError for what can be seen without the model.
    """
    if name == DENSE:
        return None
    recipe = parse_recipe(
        WANDA if name == DEFAULT else name, sparsity=settings.sparsity, pattern=settings.pattern
    )
    if recipe.cut and recipe.cut.unit == "vocabulary":
        raise PrunerZeroError(
            "compare measures all models on the same tokens, and without some of them text has "
            "others: prune by --structure vocabulary and compare the bits per byte that evaluate "
            "gives"
        )
    for option in ("include", "exclude"):
        if recipe.cut and getattr(settings, option):
            raise PrunerZeroError(f"{name} removes units of every block: leave out --{option}")
    # All methods have the same statistics, those of the dense model, but where they train blocks.
    return replace(recipe, name=name, dense_inputs=True)


def _plan(recipe: Recipe, language_model: LanguageModel, settings: CompareSettings) -> Recipe:
    """The recipe for this model. Raises PrunerZeroError for what can be seen before any work."""
    include, exclude = settings.include, settings.exclude
    if recipe.name == DEFAULT:
        assert recipe.pattern is not None
        matrices = find_matrices(language_model.model, include, exclude)
        recipe = default_beside(matrices, recipe.pattern, None)
    try:
        recipe = recipe.fitted(language_model)
    except PrunerZeroError as error:
        raise PrunerZeroError(f"{recipe.name}: {error}") from error
    check_recipe(language_model, recipe, include, exclude, weights=False)
    return recipe


def _head(name: str, recipe: Recipe | None) -> dict[str, Any]:
    """What is known of a row before the recipe is run."""
    if recipe is None:
        return {"method": name}
    expression = str(recipe.metric.expression) if recipe.metric else None
    return {"method": name, "expression": expression, **recipe.to_json()}


def _calibrate(
    language_model: LanguageModel,
    windows: Windows,
    store: StatisticsStore,
    recipes: Iterable[Recipe | None],
) -> None:
    """Collect the dense statistics of all recipes that take all windows, once."""
    needed: set[Kind] = set()
    for recipe in recipes:
        if recipe and takes_all_windows(recipe):
            needed |= dense_kinds(recipe)
    for kind in (ForwardStatistic, GradientStatistic):
        # An error here occurs again in the rows that need these statistics, and only there.
        with suppress(PrunerZeroError):
            calibrate(language_model, windows, select(kind, needed), store)


def _measure(
    language_model: LanguageModel,
    recipe: Recipe | None,
    windows: Windows,
    test: Windows,
    store: StatisticsStore,
    settings: CompareSettings,
) -> dict[str, Any]:
    """Prune by a recipe and measure the perplexity on `test`; an error goes into the row.

    Seconds and peak memory count only the pruning, not the collection of the statistics, which
    all methods share, nor the perplexity. Units that are removed come back.
    """
    model = language_model.model
    include = recipe.cut.include if recipe and recipe.cut else settings.include
    matrices = find_matrices(model, include, settings.exclude)
    row: dict[str, Any] = {"perplexity": None, "sparsity": None}
    try:
        with ExitStack() as undo:
            with measured() as cost:
                pruned = recipe and run_recipe(
                    language_model,
                    windows,
                    recipe,
                    store,
                    matrices=matrices,
                    seed=settings.seed,
                    undo=undo,
                )
            records = pruned.records if pruned else []
            sparsity = total_sparsity(records) if records else _share_of_zeros(matrices)
            row["sparsity"] = round(sparsity, 6)
            row["parameters"], row["bytes"] = pruned.size if pruned else size_of(model)
            figures = perplexity(language_model, test).figures()
            row |= {name: value for name, value in figures.items() if name != "text"}
    except PrunerZeroError as error:
        row["error"] = str(error)
    else:
        if notes := [f"{record.name}: {record.note}" for record in records if record.note]:
            row["notes"] = notes
    return {**row, **cost.to_json()}


def _share_of_zeros(matrices: Sequence[Matrix]) -> float:
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.weight.numel() for matrix in matrices)
