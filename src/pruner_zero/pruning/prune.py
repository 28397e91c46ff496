"""`prune`: from a model and a metric to a folder that plain `from_pretrained` loads."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruner_zero.calibration.calibrate import StatisticsStore
from pruner_zero.calibration.gradients import check_gradients
from pruner_zero.calibration.statistics import GradientStatistic, select
from pruner_zero.calibration.windows import calibration_texts, open_calibration
from pruner_zero.devices import naming_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.metric.metric import Metric
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_source import GgufSource, read_source, source_of
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import as_language_model
from pruner_zero.models.matrices import Matrix, local_name_of, size_of
from pruner_zero.models.saving import save_model
from pruner_zero.progress import note
from pruner_zero.provenance import Cost, measured, provenance
from pruner_zero.pruning.checkpoint import weight_files
from pruner_zero.pruning.checks import check_recipe
from pruner_zero.pruning.estimate import Estimate, estimate
from pruner_zero.pruning.planning import needs_text, plan_recipe, read_recipe
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.result_folder import GGUF_PRUNING, build_folder, check_output
from pruner_zero.settings.calibration import TOKENS
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.text.mixture import Mixture, SelfText, Source
from pruner_zero.text.token_windows import Windows

# Settings of the statistics that `identity` names one by one.
_NAMED = {"model", "windows", "torch"}
# Settings that may differ when an interrupted run is resumed: no finished block depends on them.
_PLACE = {"device", "distill", "gguf_type"}


@naming_out_of_memory("choose --distill 0, fewer --windows, a shorter --seqlen, or --offload")
def prune(
    model: str | Path | LanguageModel | Any = None,
    metric: str | Metric | None = None,
    *,
    calibration: Source | Mapping[Any, float] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> PruneResult:
    """Prune a language model by a metric, and save it to `output` if one is given.

    output: a folder, or for a model that is read from a .gguf file also a .gguf file, which keeps
    its metadata, and `pruning.json` under the key pruner_zero.pruning.

    model: what `load_model` takes, or a model object with its `tokenizer`, which is then
    pruned in place; None where `config` names it. metric: a name, an expression, a tree
    file or a `Metric`. calibration: what `load_corpus` takes, or "self", text that the model
    writes; None where the method needs no statistics, as magnitude. settings: the remaining
    fields of `PruneSettings`, such as sparsity=0.5 or pattern="2:4", which may also be a
    `Pattern`; config: a YAML file of them, over which arguments win. cache: the folder where
    statistics and text that the model writes are kept for the next run, the user's cache where
    None.

    offload=True leaves the model on disk and reads it block by block, which keeps its memory small;
    the result is the same. Distillation alone has the whole pruned model in memory: the default
    method leaves it out where that does not fit, and says so. offload=True needs an `output`, and a
    model that is not an object.

    The result is built up in `OUTPUT.partial` and moved to `output` when it is complete; the same
    call after an interruption resumes after the last finished block. Raises PrunerZeroError,
    naming what to change; `output` is then unchanged, and a model object may be pruned in part.
    """
    parts = (model, metric, calibration, output, overwrite, tokenizer, config, settings)
    run = _prepare(*parts)
    if run.settings.offload and run.folder is None:
        raise PrunerZeroError("--offload needs an output folder, where the result is built up")
    for line in run.lines():
        note(line)
    windows, store = open_calibration(
        run.texts, run.language_model, run.shape, run.settings.seed, cache
    )
    work = _Work(run, windows, store)
    return build_folder(run.folder, overwrite, "block", work.identity(), work.prune, work.write)


def plan(
    model: str | Path | LanguageModel | Any = None,
    metric: str | Metric | None = None,
    *,
    calibration: Source | Mapping[Any, float] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    config: str | Path | None = None,
    **settings: Any,
) -> "Plan":
    """What `prune` with these arguments would do, and what it would take; nothing is changed.

    Raises PrunerZeroError for what `prune` refuses before its work.
    """
    parts = (model, metric, calibration, output, overwrite, tokenizer, config, settings)
    return _prepare(*parts)


def _prepare(
    model: Any,
    metric: str | Metric | None,
    calibration: Source | Mapping[Any, float] | None,
    output: str | Path | None,
    overwrite: bool,
    tokenizer: Any,
    config: str | Path | None,
    settings: Mapping[str, Any],
) -> "Plan":
    """All that comes before the first work. Raises PrunerZeroError for what can be seen by then."""
    checked, said, completed = read_recipe(model, metric, calibration, config, settings)
    folder = None if output is None else check_output(output, overwrite, [checked.model], gguf=True)
    is_object = model is not None and not isinstance(model, str | Path)
    name = None if is_object else checked.model
    gguf = source_of(folder, checked.gguf_type, name, "--offload" * checked.offload)
    if checked.offload:
        _check_offload(is_object)
    text = checked.calibration if calibration is None else calibration
    texts = calibration_texts(text, needs_text(said) or completed, scripts=checked.scripts)
    if checked.offload:
        from pruner_zero.offload.model import load_offloaded

        language_model: LanguageModel = load_offloaded(checked.model, **checked.loading)
    else:
        model = checked.model if model is None else model
        language_model = as_language_model(model, tokenizer, **checked.loading)
    source = None
    if gguf:
        source = read_source(gguf, checked.model, language_model.model, checked.structure)
    recipe = plan_recipe(checked, said, completed, language_model, source)
    # Of a model on disk, distillation is left out where memory is too small, and the run goes on.
    optional = checked.offload and checked.distill is None and completed
    certain = replace(recipe, distill=0) if optional else recipe
    matrices = check_recipe(
        language_model, certain, checked.include, checked.exclude, saved=folder is not None
    )
    if recipe.text and select(GradientStatistic, recipe.kinds()):
        # Before the model writes a text for nothing.
        check_gradients(matrices)
    sources = texts.texts if texts else ()
    writes = any(isinstance(source, SelfText) for source in sources)
    duration = estimate(language_model, recipe, matrices, writes=writes)
    parts = (checked, recipe, language_model, is_object, texts, matrices, folder, source)
    return Plan(*parts, optional, duration)


def _check_offload(is_object: bool) -> None:
    """Raise PrunerZeroError for what --offload cannot be combined with."""
    if is_object:
        raise PrunerZeroError(
            "a model object is in memory already: save it with save_pretrained and give "
            "--offload its folder, or leave out --offload"
        )


@dataclass(frozen=True)
class Plan:
    """A run before its first work: the recipe for a model, its matrices, and what it takes.

    is_object: whether the caller gave a model object. texts: of the calibration. optional: whether
    the distillation may be left out. estimate: None where the blocks of the model cannot be run
    alone.
    """

    settings: PruneSettings
    recipe: Recipe
    language_model: LanguageModel
    is_object: bool
    texts: Mixture | None
    matrices: Sequence[Matrix]
    folder: Path | None
    source: GgufSource | None
    optional: bool
    estimate: Estimate | None

    @property
    def shape(self) -> tuple[int, int]:
        """The number of calibration windows, and the tokens in each."""
        text = self.recipe.text
        return self.settings.shape(text.tokens if text else TOKENS)

    @property
    def shapes(self) -> dict[str, list[tuple[int, int]]]:
        """The shapes (out, in) of the matrices by their name inside a block."""
        by_name: dict[str, list[tuple[int, int]]] = defaultdict(list)
        of_text = self.recipe.cut is not None and self.recipe.cut.when == "text"
        for matrix in () if of_text else self.matrices:
            name = local_name_of(matrix.name, matrix.block)
            by_name[name].append((matrix.weight.shape[0], matrix.weight.shape[1]))
        return by_name

    def lines(self) -> list[str]:
        """What it takes and what is done, line by line."""
        duration = str(self.estimate or "how long it takes is not known")
        return [duration, *self.recipe.lines()]

    def to_json(self) -> dict[str, Any]:
        """The recipe, the matrices by name, and the estimate, as JSON values."""
        shapes = {n: {"count": len(group), "shape": group[0]} for n, group in self.shapes.items()}
        duration = self.estimate and vars(self.estimate)
        return {**self.recipe.to_json(), "matrices": shapes, "estimate": duration}


@dataclass(frozen=True)
class _Work:
    """The work of a run: what was prepared, the calibration windows, the store of statistics."""

    run: Plan
    windows: Windows
    store: StatisticsStore

    def prune(self, journal: Journal | None) -> PruneResult:
        """Prune the model, on from the blocks that are finished in the `journal`."""
        run, model, recipe = self.run, self.run.language_model, self.run.recipe
        if run.optional and journal and not journal.decide("distill", self._fits):
            recipe = replace(recipe, distill=0)
        before = size_of(model.model)[0]
        with measured() as cost, self._named_in_part():
            pruned = run_recipe(
                model,
                self.windows,
                recipe,
                self.store,
                matrices=run.matrices,
                seed=run.settings.seed,
                journal=journal,
            )
        origin = {
            **provenance(),
            "device": str(model.device),
            "model_sha256": self.store.settings["model"],
        }
        return PruneResult(
            model,
            run.settings,
            pruned.recipe,
            recipe.order,
            pruned.records,
            (before, pruned.size[0]),
            self.windows.describe() if len(self.windows) else {},
            origin,
            cost,
            pruned.curve,
            run.folder,
            pruned.raced,
        )

    def write(self, result: PruneResult, journal: Journal, staged: Path) -> Cost:
        """Write the pruned model and the record of the run to the folder or file `staged`."""
        run, model, cut = self.run, self.run.language_model.model, result.recipe.cut
        if run.source:
            kind, stay = run.settings.gguf_type, cut.kept_tokens if cut else ()
            save_gguf(run.source, model, staged, kind, stay, {GGUF_PRUNING: result.to_json()})
            return result.cost
        if run.language_model.on_disk:
            config, files = None, weight_files(journal, result.recipe.distill)
            if cut:
                config, files = cut.cut_files(model, files)
            run.language_model.save_blocks(files, staged, config)
        else:
            save_model(run.language_model, staged)
        result.write(staged)
        return result.cost

    def _fits(self) -> bool:
        """Whether the memory is large enough for the distillation; a note where it is not."""
        run = self.run
        include, exclude = run.settings.include, run.settings.exclude
        try:
            check_recipe(
                run.language_model, run.recipe, include, exclude, weights=False, saved=True
            )
        except PrunerZeroError as error:
            note(f"{str(error).partition(':')[0]}: it is left out")
            return False
        return True

    @contextmanager
    def _named_in_part(self) -> Iterator[None]:
        """Say in an error that a model object may have been changed by then."""
        try:
            yield
        except PrunerZeroError as error:
            if not self.run.is_object:
                raise
            raise PrunerZeroError(
                f"{error} (the model object may be pruned in part by now: load it again)"
            ) from error

    def identity(self) -> dict[str, Any]:
        """The values that an unfinished run must share with this run to be resumed by it."""
        recipe, statistics = self.run.recipe, self.store.settings
        # After passes the distillation takes windows from the blocks.
        shared = {"--distill": recipe.distill > 0} if recipe.reconstruct else {}
        # The settings left out change only the rounding of sums or which files are written.
        return {
            **self.run.settings.by_option(_PLACE),
            **shared,
            "the metric": [entry.metric.to_json() for entry in recipe.entries],
            "the model's weights": statistics["model"],
            "the calibration tokens": statistics["windows"],
            "the version of torch": statistics["torch"],
            "the statistics": {name: statistics[name] for name in statistics if name not in _NAMED},
        }
