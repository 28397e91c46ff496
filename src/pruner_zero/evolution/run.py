"""`search`: find the metric that suits a model at a sparsity."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.algorithm import Algorithm, make_algorithm
from pruner_zero.evolution.allocation import (
    AllocationEvolution,
    AllocationSettings,
    JointEvolution,
    JointSettings,
)
from pruner_zero.evolution.archive import Archive, Record
from pruner_zero.evolution.build import build_evaluator, judging_dtype, search_windows
from pruner_zero.evolution.candidate import Candidate
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.executor import EXECUTORS, Executor
from pruner_zero.evolution.hall_of_fame import HallOfFame, metric_of
from pruner_zero.evolution.layout import Layout
from pruner_zero.evolution.racing import judge
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.files import locked, write_atomic
from pruner_zero.metric import Metric
from pruner_zero.models import LanguageModel, as_language_model, find_matrices
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import provenance
from pruner_zero.pruning import corpus_name, model_name
from pruner_zero.settings import read_settings
from pruner_zero.table import Tabular
from pruner_zero.text import Corpus, load_corpus

INTERRUPTED = "interrupted"
ALLOCATION = "best_allocation.json"


@dataclass(frozen=True)
class Status:
    """How far a search is, after each batch."""

    batch: int
    elapsed: float
    records: Sequence[Record]
    hall_of_fame: HallOfFame
    saved: dict[str, int]
    budget: str

    @property
    def by_rung(self) -> list[int]:
        """How many candidates ended on each rung, rejected ones first."""
        counts = [0, 0, 0, 0]
        for record in self.records:
            if record.evaluation.same_as is None:
                counts[record.evaluation.rung] += 1
        return counts

    @property
    def per_minute(self) -> float:
        """Candidates a minute, duplicates and rejected ones included."""
        return 60 * len(self.records) / self.elapsed if self.elapsed else 0.0


class Observer(Protocol):
    """Is told of every batch."""

    def __call__(self, status: Status) -> None:
        """Show `status`."""


@dataclass(frozen=True, repr=False)
class SearchResult(Tabular):
    """A finished (or stopped) search: every record, and the front of them."""

    shown = HallOfFame.shown

    records: Sequence[Record]
    hall_of_fame: HallOfFame
    folder: Path
    stopped: str

    @property
    def best(self) -> Metric:
        """The metric of the lowest loss, with its scope. Raises PrunerZeroError where none is."""
        return metric_of(self.hall_of_fame.best)

    def caption(self) -> str:
        """Where it is, why it stopped, how many candidates there were."""
        return f"{self.folder}: stopped, {self.stopped}; {len(self.records)} candidates"

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows of the hall of fame."""
        return self.hall_of_fame.to_rows()


def search(
    model: str | Path | LanguageModel | Any,
    *,
    calibration: str | Path | Corpus | Iterable[str] | None = None,
    search_text: str | Path | Corpus | Iterable[str] | None = None,
    output: str | Path,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    progress: Progress = SILENT,
    observer: Observer = lambda status: None,
    **settings: Any,
) -> SearchResult:
    """Search the metric under which pruning `model` costs least, into the run folder `output`.

    calibration: the text of the statistics; search_text: the text candidates are judged on.
    settings: the remaining fields of `SearchSettings`, at least a sparsity or pattern and a
    budget; config: a YAML file of them. Where `output` holds an unfinished run of the same
    settings it goes on; the archive ends as if it had never been interrupted. An
    interruption (KeyboardInterrupt) ends the search with everything kept. Raises
    PrunerZeroError, naming what to change.

    With allocation="evolved" how much of each matrix goes is searched too, together with the
    metric, or alone for the `metric` that is given. Under a global scope that begins with what a
    metric chooses by itself. The shares of the best are in `best_allocation.json`, which `prune`
    reads as its allocation, and `search` too, which then finds the metric for them; there is no
    such file where the best has none of its own.
    """
    given = {
        **settings,
        "model": model_name(model),
        "calibration": corpus_name(calibration),
        "search_text": corpus_name(search_text),
    }
    checked = read_settings(SearchSettings, given, config)
    folder = Path(output)
    _check_folder(folder)
    own = load_corpus(calibration or checked.calibration, role="calibration", progress=progress)
    judged = load_corpus(search_text or checked.search_text, role="search", progress=progress)
    language_model = as_language_model(model, tokenizer, checked.dtype, checked.placed_on)
    windows, search_on = search_windows(checked, own, judged, language_model.tokenizer)
    matrices = find_matrices(language_model.model, checked.include, checked.exclude)
    layout = Layout.of(matrices)
    if checked.shares is not None:
        # What is wrong with them is told before any work.
        layout.shares(checked.shares, checked.zeros.sparsity, "row")
    algorithm = _algorithm(checked, layout)

    shares_of: Candidate | None = None

    def observe(status: Status) -> None:
        nonlocal shares_of
        best = status.hall_of_fame.best
        if checked.allocation == "evolved" and best and best.candidate != shares_of:
            shares_of = best.candidate
            write_shares(folder / ALLOCATION, shares_of, evaluator)
        observer(status)

    with locked(folder):
        identity = {
            **checked.identity(),
            "judge_dtype": str(judging_dtype(language_model.model, checked)),
            "calibration_tokens": windows.sha256,
            "search_tokens": search_on.sha256,
            "model_weights": language_model.fingerprint(),
        }
        archive = Archive(folder, identity)
        write_atomic(
            folder / "run.json",
            json.dumps(
                {
                    "settings": checked.model_dump(mode="json"),
                    "calibration": windows.describe(),
                    "search": search_on.describe(),
                    "provenance": {**provenance(), "device": str(language_model.device)},
                },
                indent=2,
            )
            + "\n",
        )
        evaluator = build_evaluator(
            language_model,
            checked,
            windows,
            search_on,
            cache=Path(cache) if cache is not None else None,
            progress=progress,
        )
        executor = make_executor(checked, evaluator)
        try:
            stopped = run(algorithm, archive, executor, checked, folder, observe)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        finally:
            executor.close()
    return SearchResult(archive.records, HallOfFame.of(archive.records), folder, stopped)


def prune_options(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """How `prune` applies what the run in `folder` found, by setting: its metric, update, shares.

    settings: those of the run, as it keeps them.
    """
    found = {"metric": str(folder / "best.json")}
    if settings.get("update", "none") != "none":
        found["update"] = settings["update"]
    shares = settings.get("allocation", "uniform")
    if shares == "evolved" and (folder / ALLOCATION).exists():
        found["allocation"] = str(folder / ALLOCATION)
    elif shares not in ("uniform", "evolved"):
        found["allocation"] = shares
    return found


def write_shares(file: Path, best: Candidate, evaluator: Evaluator) -> None:
    """Bring `file` up to the shares of the best candidate; it is gone where that has none."""
    shares = evaluator.allocation_of(best)
    if shares is None:
        file.unlink(missing_ok=True)
    else:
        write_atomic(file, shares.to_json())


def _algorithm(settings: SearchSettings, layout: Layout) -> Algorithm:
    """What asks for candidates: metrics, shares for one metric, or both together."""
    if settings.allocation == "evolved" and settings.metric is None:
        return JointEvolution(
            settings.search_space,
            settings.seed,
            layout,
            read_settings(JointSettings, settings.algorithm_settings),
            [Metric.of(text) for text in settings.seed_metrics],
        )
    if settings.allocation == "evolved":
        method = settings.method
        own = read_settings(AllocationSettings, settings.algorithm_settings)
        return AllocationEvolution(
            method.metric.expression, method.scope or "row", layout, settings.seed, own
        )
    return make_algorithm(
        settings.algorithm,
        settings.search_space,
        settings.seed,
        settings.algorithm_settings,
        [Metric.of(text) for text in settings.seed_metrics],
    )


def run(
    algorithm: Algorithm,
    archive: Archive,
    executor: Executor,
    settings: SearchSettings,
    folder: Path,
    observer: Observer,
) -> str:
    """Ask, judge, tell, until a budget is spent; return why it stopped."""
    start = time.monotonic() - archive.elapsed
    best_batch, best_key = 0, (0, float("inf"))
    while True:
        batch = algorithm.ask()
        if not batch:
            return "the search space is exhausted"
        records = judge(batch, archive, executor, settings.racing)
        algorithm.tell([(one.candidate, one.evaluation) for one in records])
        archive.commit(records, time.monotonic() - start, algorithm.avoided)
        hall = HallOfFame.of(archive.records)
        hall.write(folder)
        elapsed = max(archive.elapsed, 0.0)
        observer(
            Status(
                archive.batches,
                elapsed,
                archive.records,
                hall,
                dict(archive.saved + Counter(algorithm.avoided)),
                _budget(settings),
            )
        )
        if hall.best and hall.best.evaluation.key < best_key:
            best_batch, best_key = archive.batches, hall.best.evaluation.key
        reason = _stops(settings, archive, hall, elapsed, archive.batches - best_batch)
        if reason and archive.batches >= archive.batches_written:
            return reason


def make_executor(settings: SearchSettings, evaluator: Evaluator) -> Executor:
    """The executor that the settings ask for; processes where there is more than one worker."""
    if settings.executor == "ray":
        from pruner_zero.evolution.ray_executor import RayExecutor

        return RayExecutor(
            evaluator,
            settings.workers,
            settings.threads,
            settings.time_limit,
            address=settings.ray_address,
            resources=settings.ray_resources,
        )
    # Elsewhere than in main memory the model is not shared: one worker has it there.
    here = evaluator.masked.device == CPU
    cores = (os.cpu_count() or 1) if here else 1
    workers = settings.workers or max(1, cores // settings.threads)
    name = settings.executor or ("processes" if workers > 1 else "serial")
    return EXECUTORS[name](evaluator, workers, settings.threads, settings.time_limit)


def _stops(
    settings: SearchSettings, archive: Archive, hall: HallOfFame, elapsed: float, stale: int
) -> str | None:
    distinct = sum(1 for _ in archive.distinct())
    if settings.evaluations is not None and distinct >= settings.evaluations:
        return f"{distinct} distinct candidates evaluated"
    if settings.minutes is not None and elapsed >= 60 * settings.minutes:
        return f"{settings.minutes:g} minutes spent"
    if settings.target_loss is not None and hall.best:
        best = hall.best.evaluation
        if best.rung == 3 and best.value <= settings.target_loss:
            return f"target loss {settings.target_loss:g} reached"
    if settings.patience is not None and stale >= settings.patience:
        return f"no better metric in {stale} batches"
    return None


def _budget(settings: SearchSettings) -> str:
    parts = [
        f"{settings.minutes:g} min" if settings.minutes is not None else None,
        f"{settings.evaluations} evaluations" if settings.evaluations is not None else None,
    ]
    return " or ".join(part for part in parts if part)


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise PrunerZeroError(f"{folder} is a file: choose another folder for the run")
    known = {"journal.jsonl", ".lock"}
    if folder.is_dir():
        there = {path.name for path in folder.iterdir()}
        if there and not there & known:
            raise PrunerZeroError(f"{folder} is not empty and holds no run: choose another folder")
