"""`prune`: from a model and a metric to a folder that plain `from_pretrained` loads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import Any

from pruner_zero.calibration.gradients import check_gradients
from pruner_zero.calibration.statistics import GradientStatistic, select
from pruner_zero.calibration.store import StatisticsStore
from pruner_zero.calibration.windows import calibration_texts, open_calibration
from pruner_zero.devices import naming_out_of_memory, torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.journal import Journal
from pruner_zero.metric.metric import Metric
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_source import GgufSource, read_source, source_of
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import as_language_model
from pruner_zero.models.save import save_model
from pruner_zero.models.structure import Matrix, find_matrices, size_of
from pruner_zero.progress import note
from pruner_zero.provenance import Cost, measured, provenance
from pruner_zero.pruning.checkpoint import weight_files
from pruner_zero.pruning.method import Method, describe_steps, for_wide, is_wide
from pruner_zero.pruning.model import check_plan, prune_model
from pruner_zero.pruning.parse_method import check_compares_weights, default_rivals, parse_method
from pruner_zero.pruning.result import PruneResult
from pruner_zero.result_folder import GGUF_PRUNING, build_folder, check_output
from pruner_zero.settings.base import name_of, names_of
from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.read import read_settings
from pruner_zero.sparsity.pattern import Pattern
from pruner_zero.text.mixture import Source
from pruner_zero.text.windows import Windows

# The settings that `parse_method` takes under their names.
_OPTIONS = ("sparsity", "scope", "update", "refine", "asymmetric", "structure", "parameters")
# Those of one kind of unit.
_OF_UNITS = ("multiple_of", "tokens", "keep", "scripts")
# Settings of the statistics that `identity` names one by one.
_NAMED = {"model", "windows", "torch"}
# The note that is shown where no metric is named; benchmarks/proof.md has the figures.
_CHOSEN = (
    "No --metric: using {method}, the best method measured so far. A faster method: --metric wanda"
    "{more}"
)
# More steps on the same windows gain little (benchmarks/why.md), training on the text that the
# model is for gains much (benchmarks/decisions.md).
_MORE = (
    "; for a better model, run pruner-zero recover afterwards, with the dense model as --teacher "
    "and much text of the kind that the model is for"
)
# Settings that may differ when an interrupted run is resumed: no finished block depends on them.
_PLACE = {"device", "distill", "gguf_type", "threads"}


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
    checked, method = _read(model, metric, calibration, config, settings)
    folder = None if output is None else check_output(output, overwrite, [checked.model], gguf=True)
    is_object = model is not None and not isinstance(model, str | Path)
    name = None if is_object else checked.model
    gguf = source_of(folder, checked.gguf_type, name, "--offload" * checked.offload)
    if checked.offload:
        _check_offload(is_object, folder)
    text = checked.calibration if calibration is None else calibration
    texts = calibration_texts(text, method.needs_text, checked)
    if checked.offload:
        from pruner_zero.offload.model import load_offloaded

        language_model = load_offloaded(checked.model, **checked.loading)
    else:
        model = checked.model if model is None else model
        language_model = as_language_model(model, tokenizer, **checked.loading)
    source = None
    if gguf:
        source = read_source(gguf, checked.model, language_model.model, checked.structure)
    include: Sequence[str] = checked.include
    if method.pattern.unit:
        method.pattern.check_tokenizer(language_model.tokenizer)
        fitted = method.pattern.fit(language_model.model)
        if not isclose(fitted.sparsity, method.pattern.sparsity, abs_tol=1e-6):
            note(f"removing {fitted}: {fitted.kept} stay")
        method, include = replace(method, pattern=fitted), fitted.include or include
    if checked.is_default:
        matrices = find_matrices(language_model.model, include, checked.exclude)
        if is_wide(matrices):
            method = for_wide(method, checked.mode, matrices, checked.model_fields_set)
            checked = checked.for_wide()
        if checked.offload and "distill" not in checked.model_fields_set:
            method = _within_memory(language_model, method, include, checked.exclude)
    matrices = check_plan(language_model, method, include, checked.exclude)
    if select(GradientStatistic, method.kinds):
        # Before the model writes a text for nothing.
        check_gradients(matrices)
    with torch_threads(checked.threads):
        windows, store = open_calibration(texts, language_model, checked, cache)
        run = _Run(
            language_model, is_object, windows, store, checked, method, matrices, folder, source
        )
        identity = _identity(checked, method, store)
        return build_folder(folder, overwrite, "block", identity, run.prune, run.write)


def _read(
    model: Any,
    metric: str | Metric | None,
    calibration: Any,
    config: str | Path | None,
    settings: Mapping[str, Any],
) -> tuple[PruneSettings, Method]:
    """The settings of a call of `prune`, and their method. Raises PrunerZeroError."""
    pattern = settings.get("pattern")
    values = {
        **settings,
        "pattern": None if pattern is None else str(pattern),
        "model": name_of(model),
        "metric": None if metric is None else str(getattr(metric, "expression", metric)),
        "calibration": names_of(calibration),
    }
    checked = read_settings(PruneSettings, values, config)
    if isinstance(metric, Metric) and not (checked.scope or checked.pattern or checked.structure):
        check_compares_weights(str(metric), metric)
        checked = checked.model_copy(update={"scope": metric.scope})
    zeros = pattern if isinstance(pattern, Pattern) else checked.pattern
    options = {name: getattr(checked, name) for name in _OPTIONS}
    named = {"reconstruct", "distill"}
    if not checked.is_default:
        # 0 is the default beside a metric, whose text may name amounts.
        named &= checked.model_fields_set
    amounts = {name: getattr(checked, name) for name in named}
    units = {name: getattr(checked, name) for name in _OF_UNITS}
    method = parse_method(checked.metric, pattern=zeros, units=units, **amounts, **options)
    method = replace(method, damping=checked.damping)
    if checked.is_default:
        given = checked.model_dump()
        if "scope" not in checked.model_fields_set:
            del given["scope"]
        method = replace(method, rivals=default_rivals(given))
    if method.pattern.unit and not checked.structure:
        raise PrunerZeroError(
            f"{method.name} removes whole units: name them by --structure, and their share by "
            "--sparsity"
        )
    return checked, method


def _check_offload(is_object: bool, folder: Path | None) -> None:
    """Raise PrunerZeroError for what --offload cannot be combined with."""
    if is_object:
        raise PrunerZeroError(
            "a model object is in memory already: save it with save_pretrained and give "
            "--offload its folder, or leave out --offload"
        )
    if folder is None:
        raise PrunerZeroError("--offload needs an output folder, where the result is built up")


def _within_memory(
    language_model: LanguageModel, method: Method, include: Sequence[str], exclude: Sequence[str]
) -> Method:
    """The default method for a model on disk, without a distillation that memory is too small for.

    Raises PrunerZeroError as `check_plan` does for what is not about memory.
    """
    try:
        check_plan(language_model, method, include, exclude, weights=False)
    except PrunerZeroError as error:
        method = replace(method, distill=0)
        check_plan(language_model, method, include, exclude, weights=False)
        note(f"{str(error).partition(':')[0]}: it is left out")
    return method


@dataclass(frozen=True)
class _Run:
    """The parts of one run; is_object: whether the caller gave a model object."""

    language_model: LanguageModel
    is_object: bool
    windows: Windows
    store: StatisticsStore
    settings: PruneSettings
    method: Method
    matrices: Sequence[Matrix]
    folder: Path | None
    source: GgufSource | None

    def prune(self, journal: Journal | None) -> PruneResult:
        """Prune the model, on from the blocks that are finished in the `journal`."""
        model, settings, method = self.language_model, self.settings, self.method
        before, order = size_of(model.model)[0], method.mode(settings.mode)
        if settings.is_default and not method.pattern.chosen_by:
            note(_describe_default(method))
        with measured() as cost, self._named_in_part():
            pruned = prune_model(
                model,
                self.windows,
                method,
                self.store,
                mode=order,
                matrices=self.matrices,
                seed=settings.seed,
                journal=journal,
            )
        origin = {
            **provenance(),
            "device": str(model.device),
            "model_sha256": self.store.settings["model"],
        }
        return PruneResult(
            model,
            settings,
            pruned.method,
            order,
            pruned.records,
            (before, pruned.size[0]),
            self.windows.describe() if len(self.windows) else {},
            origin,
            cost,
            pruned.curve,
            self.folder,
            pruned.raced,
        )

    def write(self, result: PruneResult, journal: Journal, staged: Path) -> Cost:
        """Write the pruned model and the record of the run to the folder or file `staged`."""
        if self.source:
            kind = self.settings.gguf_type
            model, stay = self.language_model.model, result.method.pattern.kept_tokens
            save_gguf(self.source, model, staged, kind, stay, {GGUF_PRUNING: result.to_json()})
            return result.cost
        if disk := self.language_model.on_disk:
            pattern, files = self.method.pattern, weight_files(journal, self.method.distill)
            config, files = pattern.shrink_files(self.language_model.model, files)
            disk.save(files, staged, config)
        else:
            save_model(self.language_model, staged)
        result.write(staged)
        return result.cost

    @contextmanager
    def _named_in_part(self) -> Iterator[None]:
        """Say in an error that a model object may have been changed by then."""
        try:
            yield
        except PrunerZeroError as error:
            if not self.is_object:
                raise
            raise PrunerZeroError(
                f"{error} (the model object may be pruned in part by now: load it again)"
            ) from error


def _describe_default(method: Method) -> str:
    """The note on the default method."""
    trained = f", {method.distill} steps of distillation" if method.distill else ""
    steps = describe_steps(method.steps, method.asymmetric, method.reconstruct)
    chosen = f"{method.metric.expression} ({method.pattern}){steps}{trained}"
    return _CHOSEN.format(method=chosen, more=_MORE if method.distill else "")


def _identity(settings: PruneSettings, method: Method, store: StatisticsStore) -> dict[str, Any]:
    """The values that an unfinished run must share with this run to be resumed by it."""
    statistics = store.settings
    # After passes the distillation takes windows from the blocks.
    shared = {"--distill": method.distill > 0} if method.reconstruct else {}
    # The settings left out change only the rounding of sums or which files are written.
    return {
        **settings.by_option(_PLACE),
        **shared,
        "the metric": method.metric.to_json(),
        "the model's weights": statistics["model"],
        "the calibration tokens": statistics["windows"],
        "the version of torch": statistics["torch"],
        "the statistics": {name: statistics[name] for name in statistics if name not in _NAMED},
    }
