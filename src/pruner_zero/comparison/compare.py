"""`compare`: the perplexity of a model pruned by several methods, with the same statistics."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruner_zero.calibration import (
    GradientStatistic,
    InputStatistic,
    Kind,
    StatisticsStore,
    calibrate,
    select,
    self_windows,
)
from pruner_zero.devices import CPU, naming_out_of_memory, torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evaluation.perplexity import perplexity
from pruner_zero.files import check_file, write_atomic
from pruner_zero.models import (
    LanguageModel,
    as_language_model,
    find_matrices,
    parameters_of,
    size_of,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import measured, provenance
from pruner_zero.pruning import (
    MatrixRecord,
    Method,
    Order,
    Pruned,
    Removal,
    Structured,
    calibration_texts,
    check_plan,
    chosen_by,
    open_calibration,
    parse_method,
    run_method,
    split_methods,
    total_sparsity,
)
from pruner_zero.settings import (
    CompareSettings,
    default_beside,
    name_of,
    names_of,
    read_settings,
)
from pruner_zero.table import Tabular
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.mixture import SelfText, Source, load_text
from pruner_zero.text.windows import Windows, consecutive_windows

DENSE, DEFAULT = "dense", "default"
_ZEROS = ("sparsity", "pattern", "scope", "parameters", "multiple_of")
_COSTS = ("seconds", "peak_rss_bytes", "peak_gpu_bytes")


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """A table with one row for each method, and its provenance.

    A row holds `method`, `perplexity` (None where it overflows, or where the method failed and
    `error` has the reason), `sparsity` over the pruned matrices, `parameters` and their `bytes`,
    fewer where whole units are removed, `seconds`, `peak_rss_bytes` and the parts of the method.
    """

    shown = ("method", "mode", "perplexity", "sparsity", "parameters", "bytes", *_COSTS, "error")

    rows: list[dict[str, Any]]
    provenance: dict[str, Any]

    def caption(self) -> str:
        """What the perplexities were measured on."""
        tested = self.provenance["evaluation"]
        return (
            f"perplexity per token on {tested['windows']} windows of {tested['seqlen']} tokens "
            f"of {tested['text']}"
        )

    def to_json(self) -> dict[str, Any]:
        """`rows` and `provenance`, as JSON values."""
        return {"rows": self.rows, "provenance": self.provenance}

    def write(self, file: Path) -> None:
        """Write the table to `file` in JSON. Raises PrunerZeroError."""
        write_atomic(file, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")


@naming_out_of_memory("choose fewer --windows or a shorter --seqlen")
def compare(
    model: str | Path | LanguageModel | Any = None,
    methods: str | Sequence[str] | None = None,
    *,
    calibration: Source | Mapping[Any, float] | None = None,
    text: Source | None = None,
    output: str | Path | None = None,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Comparison:
    """Prune `model` by each method in turn, from the same dense weights, and measure each.

    methods: names, expressions or tree files, as a list or with commas between them; `dense` is
    the unpruned model, `default` what `prune` does without a metric. calibration: as `prune` takes
    it. text: the text that perplexity is measured on, or "self". model, calibration, text: None
    where `config` names them. settings: the other fields of `CompareSettings`. config: a YAML file
    of settings; arguments win over it.

    The table is written to `output` after each row. Where a method cannot score this model, its
    row has the reason. A model object gets its weights back. Raises PrunerZeroError on wrong
    settings.
    """
    given = {
        **settings,
        "model": name_of(model),
        "methods": methods,
        "calibration": names_of(calibration),
        "text": name_of(text),
    }
    checked = read_settings(CompareSettings, given, config)
    given = {name: getattr(checked, name) for name in _ZEROS}
    names = split_methods(checked.methods)
    chosen = {name: _parse(name, given, checked) for name in names}
    removals = [m.pattern for m in chosen.values() if m and isinstance(m.pattern, Removal)]
    if not removals:
        checked.refuse(("parameters",), "a method that removes units")
    if not any(isinstance(p, Structured) and p.structure == "channels" for p in removals):
        checked.refuse(("multiple_of",), "a method that removes channels")
    file = check_file(output) if output is not None else None
    calibration = checked.calibration if calibration is None else calibration
    texts = calibration_texts(calibration, filter(None, chosen.values()), progress)
    test_text = load_text(checked.text if text is None else text, role="test", progress=progress)
    if isinstance(test_text, SelfText) and checked.windows_eval is None:
        raise PrunerZeroError(
            "the model can write any number of windows for --text self: give --windows-eval, such "
            "as 24"
        )
    language_model = as_language_model(
        checked.model if model is None else model, tokenizer, **checked.loading
    )
    chosen = {
        name: method and _plan(method, language_model, checked) for name, method in chosen.items()
    }
    with torch_threads(checked.threads):
        windows, store = open_calibration(texts, language_model, checked, cache, progress)
        seqlen, count = checked.seqlen_eval or checked.seqlen, checked.windows_eval
        if isinstance(test_text, Corpus):
            test = consecutive_windows(test_text, language_model.tokenizer, seqlen, count, "-eval")
        else:
            assert count is not None
            test = self_windows(
                language_model,
                count,
                seqlen,
                checked.seed,
                # Windows that calibration does not have.
                first=texts.count_self(checked.windows) if texts else 0,
                folder=cache,
                fingerprint=store.settings["model"],
                progress=progress,
            )
        table = _Table(checked, language_model, windows, test, store, progress)
        return table.fill(chosen, file)


def _parse(name: str, given: Mapping[str, Any], settings: CompareSettings) -> Method | None:
    """The method of this name with the `given` settings, None for the unpruned model."""
    if name == DENSE:
        return None
    if name != DEFAULT:
        return parse_method(name, **given)
    chosen = {**given, **default_beside({**given, "mode": settings.mode})}
    return replace(parse_method(chosen.pop("metric"), **chosen), name=name)


def _plan(method: Method, language_model: LanguageModel, settings: CompareSettings) -> Method:
    """The method for this model. Raises PrunerZeroError for what can be seen before any work."""
    include: Sequence[str] = settings.include
    if isinstance(method.pattern, Removal) and (include or settings.exclude):
        raise PrunerZeroError(
            f"{method.name} removes units of every block: leave out "
            f"--{'include' if include else 'exclude'}"
        )
    if isinstance(method.pattern, Removal):
        try:
            fitted = method.pattern.of_model(language_model.model)
        except PrunerZeroError as error:
            raise PrunerZeroError(f"{method.name}: {error}") from error
        method, include = replace(method, pattern=fitted), fitted.include
    check_plan(language_model, method, include, settings.exclude)
    return method


@dataclass(frozen=True)
class _Table:
    settings: CompareSettings
    language_model: LanguageModel
    windows: Windows
    test: Windows
    store: StatisticsStore
    progress: Progress

    def fill(self, methods: dict[str, Method | None], output: Path | None) -> Comparison:
        matrices = find_matrices(self.language_model.model)
        with measured() as calibration:
            self.calibrate(methods.values())
        comparison = Comparison(
            [],
            {
                **provenance(),
                "device": str(self.language_model.device),
                "settings": self.settings.model_dump(mode="json"),
                "calibration": self.windows.describe() if len(self.windows) else {},
                "evaluation": self.test.describe(),
                **{f"calibration_{key}": value for key, value in calibration.to_json().items()},
            },
        )
        parameters = parameters_of(matrices)
        # In main memory, because a model may fill its device.
        dense = {name: p.data.to(CPU, copy=True) for name, p in parameters.items()}
        for name, method in methods.items():
            try:
                comparison.rows.append(self.row(name, method))
            finally:
                for parameter_name, parameter in parameters.items():
                    parameter.data.copy_(dense[parameter_name])
            if output:
                comparison.write(output)
        return comparison

    def calibrate(self, methods: Iterable[Method | None]) -> None:
        """Collect all dense statistics that any method needs, once."""
        needed: set[Kind] = set()
        for method in methods:
            if method:
                needed |= method.dense_kinds(self.mode(method))
        for kinds in (select(InputStatistic, needed), select(GradientStatistic, needed)):
            # An error here occurs again in the rows that need these statistics, and only there.
            with suppress(PrunerZeroError):
                model, windows, store = self.language_model, self.windows, self.store
                calibrate(model, windows, kinds, store, progress=self.progress)

    def mode(self, method: Method) -> Order:
        """The mode of the settings, unless the method allows only one."""
        bound = method.asymmetric or method.at_once
        return method.mode("auto" if bound else self.settings.mode)

    def prune(self, method: Method, undo: ExitStack) -> Pruned:
        """Prune by one method; units that it removes come back when `undo` is closed."""
        model, settings = self.language_model, self.settings
        include: Sequence[str] = settings.include
        if isinstance(method.pattern, Removal):
            include = method.pattern.include
        return run_method(
            model,
            self.windows,
            method,
            self.store,
            mode=self.mode(method),
            matrices=find_matrices(model.model, include, settings.exclude),
            damping=settings.damping,
            seed=settings.seed,
            undo=undo,
            progress=self.progress,
        )

    def row(self, name: str, method: Method | None) -> dict[str, Any]:
        """Prune by one method and measure its perplexity; an error goes into the row.

        Seconds and peak memory count only the pruning, not the collection of the statistics, which
        all methods share, nor the perplexity.
        """
        model, settings, progress = self.language_model, self.settings, self.progress
        progress.note(f"{name} …")
        row: dict[str, Any] = {"method": name, "perplexity": None, "sparsity": None}
        if method:
            by_metric = not chosen_by(method.pattern)
            row["expression"] = str(method.metric.expression) if by_metric else None
            row |= {**method.to_json(), "mode": self.mode(method)}
        records: Sequence[MatrixRecord] = ()
        try:
            with ExitStack() as undo:
                size = size_of(model.model)
                with measured() as cost:
                    if method:
                        pruned = self.prune(method, undo)
                        records, size = pruned.records, pruned.size
                row["sparsity"] = round(total_sparsity(records), 6) if records else 0.0
                row["parameters"], row["bytes"] = size
                loss = perplexity(model, self.test, progress, settings.batch_size)
        except PrunerZeroError as error:
            row["error"] = str(error)
        else:
            row["perplexity"] = loss.perplexity if math.isfinite(loss.perplexity) else None
            row |= {"loss": loss.loss, "losses": list(loss.losses)}
            if notes := [f"{record.name}: {record.note}" for record in records if record.note]:
                row["notes"] = notes
        return {**row, **cost.to_json()}
