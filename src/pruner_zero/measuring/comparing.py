"""`compare`: the perplexity of a model pruned by several methods, with the same statistics."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.calibration.statistics import ForwardStatistic, GradientStatistic, Kind, select
from pruner_zero.calibration.windows import calibration_texts, open_calibration
from pruner_zero.devices import CPU, naming_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.comparison_table import (
    Comparison,
    check_continued,
    continued,
    read_unfinished,
)
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
_ZEROS = ("sparsity", "pattern")


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
    chosen = {name: _parse(name, checked) for name in split_methods(checked.methods)}
    units = {recipe.cut.unit for recipe in chosen.values() if recipe and recipe.cut}
    if "vocabulary" in units:
        raise PrunerZeroError(
            "compare measures all models on the same tokens, and without some of them text has "
            "others: prune by --structure vocabulary and compare the bits per byte that evaluate "
            "gives"
        )
    file = None if output is None else Path(output)
    table = file and read_unfinished(file, overwrite)
    resolved = checked.model_dump(mode="json")
    if file and table:
        check_continued(file, table, {"settings": resolved})
    calibration = checked.calibration if calibration is None else calibration
    needed = any(needs_text(recipe) for recipe in chosen.values() if recipe)
    texts = calibration_texts(calibration, needed or DEFAULT in chosen)
    test_text = load_text(
        checked.text if text is None else text,
        role="test",
    )
    if isinstance(test_text, SelfText) and checked.windows_eval is None:
        raise PrunerZeroError(
            "the model can write any number of windows for --text self: give --windows-eval, such "
            "as 24"
        )
    if isinstance(test_text, Corpus) and texts and test_text.sha256 in texts.hashes():
        note(
            f"calibration and evaluation use the same text, {test_text.name}: the perplexities are "
            "lower than on other text"
        )
    language_model = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    chosen = {
        name: recipe and _plan(recipe, language_model, checked) for name, recipe in chosen.items()
    }
    matrices = find_matrices(language_model.model, checked.include, checked.exclude)
    check_parameters(language_model, matrices)
    seqlen, count = checked.seqlen, checked.windows_eval
    if isinstance(test_text, Corpus):
        # Before the model writes a calibration text, because the text may be too short.
        test = consecutive_windows(test_text, language_model.tokenizer, seqlen, count, "-eval")
    windows, store = open_calibration(
        texts, language_model, (checked.windows, checked.seqlen), checked.seed, cache
    )
    if isinstance(test_text, SelfText):
        assert count is not None
        test = self_windows(
            language_model,
            count,
            seqlen,
            checked.seed,
            text=test_text,
            # Windows that calibration does not have.
            first=texts.count_self(checked.windows) if texts else 0,
            folder=cache,
            fingerprint=store.settings["model"],
        )
    # A remark on long windows is made once, by `open_calibration`.
    check_tokens(language_model.model, test.tokens)
    origin = {
        **origin_of(language_model, store.settings["model"]),
        "settings": resolved,
        "calibration": windows.describe() if len(windows) else {},
        "evaluation": test.describe(),
    }
    heads = {name: _head(name, recipe) for name, recipe in chosen.items()}
    begun = continued(file, table, origin, heads) if file and table else Comparison([], origin)
    comparing = _Comparing(checked, language_model, windows, test, store)
    return comparing.fill(chosen, heads, begun, file)


def _parse(name: str, settings: CompareSettings) -> Recipe | None:
    """The recipe of this name with the settings, None for the unpruned model.

    The masks of `default` depend on the model: those of Wanda stand in their place.
    """
    if name == DENSE:
        return None
    zeros = {name: getattr(settings, name) for name in _ZEROS}
    recipe = parse_recipe(WANDA if name == DEFAULT else name, **zeros)
    # All methods have the same statistics, those of the dense model, but where they train blocks.
    return replace(recipe, name=name, dense_inputs=True)


def _plan(recipe: Recipe, language_model: LanguageModel, settings: CompareSettings) -> Recipe:
    """The recipe for this model. Raises PrunerZeroError for what can be seen before any work."""
    include, exclude = settings.include, settings.exclude
    if recipe.cut and (include or exclude):
        raise PrunerZeroError(
            f"{recipe.name} removes units of every block: leave out "
            f"--{'include' if include else 'exclude'}"
        )
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
    return {"method": name, "expression": expression, **recipe.to_json(), "mode": recipe.order}


@dataclass(frozen=True)
class _Comparing:
    settings: CompareSettings
    language_model: LanguageModel
    windows: Windows
    test: Windows
    store: StatisticsStore

    def fill(
        self,
        methods: Mapping[str, Recipe | None],
        heads: Mapping[str, Mapping[str, Any]],
        begun: Comparison,
        output: Path | None,
    ) -> Comparison:
        """The table with a row for each method, made here where `begun` lacks it."""
        earlier = {row["method"]: row for row in begun.rows}
        with measured() as cost:
            self.calibrate(method for name, method in methods.items() if name not in earlier)
        costs = {f"calibration_{key}": value for key, value in cost.to_json().items()}
        table = Comparison([], {**costs, **begun.provenance}, complete=False)
        blocks = find_blocks(self.language_model.model)
        parameters = [parameter for block in blocks for parameter in block.parameters()]
        # In main memory, because a model may fill its device.
        dense = [(parameter, parameter.data.to(CPU, copy=True)) for parameter in parameters]
        for name, method in methods.items():
            try:
                table.rows.append(earlier.get(name) or self.row(heads[name], method))
            finally:
                for parameter, weights in dense:
                    parameter.data.copy_(weights)
            table = replace(table, complete=len(table.rows) == len(methods))
            if output:
                table.write(output)
        return table

    def calibrate(self, methods: Iterable[Recipe | None]) -> None:
        """Collect the dense statistics of all methods that take all windows, once."""
        needed: set[Kind] = set()
        for method in methods:
            if method and takes_all_windows(method):
                needed |= dense_kinds(method)
        for kind in (ForwardStatistic, GradientStatistic):
            # An error here occurs again in the rows that need these statistics, and only there.
            with suppress(PrunerZeroError):
                calibrate(self.language_model, self.windows, select(kind, needed), self.store)

    def row(self, head: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
        """Prune by one method and measure its perplexity; an error goes into the row.

        Seconds and peak memory count only the pruning, not the collection of the statistics, which
        all methods share, nor the perplexity.
        """
        model, settings = self.language_model, self.settings
        include = recipe.cut.include if recipe and recipe.cut else settings.include
        matrices = find_matrices(model.model, include, settings.exclude)
        note(f"{head['method']} …")
        row: dict[str, Any] = {**head, "perplexity": None, "sparsity": None}
        try:
            # Units that are removed come back when `undo` is closed.
            with ExitStack() as undo:
                with measured() as cost:
                    pruned = recipe and run_recipe(
                        model,
                        self.windows,
                        recipe,
                        self.store,
                        matrices=matrices,
                        seed=settings.seed,
                        undo=undo,
                    )
                records = pruned.records if pruned else []
                sparsity = total_sparsity(records) if records else _share_of_zeros(matrices)
                row["sparsity"] = round(sparsity, 6)
                row["parameters"], row["bytes"] = pruned.size if pruned else size_of(model.model)
                figures = perplexity(model, self.test).figures()
        except PrunerZeroError as error:
            row["error"] = str(error)
        else:
            row |= {name: value for name, value in figures.items() if name != "text"}
            if notes := [f"{record.name}: {record.note}" for record in records if record.note]:
                row["notes"] = notes
        return {**row, **cost.to_json()}


def _share_of_zeros(matrices: Sequence[Matrix]) -> float:
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in matrices)
    return zeros / sum(matrix.weight.numel() for matrix in matrices)
