"""`search`: find the metric that prunes a model best at a sparsity."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.choices import Group
from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.ask import BatchAlgorithm
from pruner_zero.evolution.build import (
    JudgedModel,
    check_settings,
    joined,
    space_of,
)
from pruner_zero.evolution.evaluator import Judge, Outcome, Task
from pruner_zero.evolution.final import (
    FINAL_SHARE,
    FINALISTS,
    FinalRace,
    affordable,
    race_finalists,
)
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.evolution.racing import Racing
from pruner_zero.evolution.racing import judge as judge_batch
from pruner_zero.evolution.record import JOURNAL, Archive, Record
from pruner_zero.evolution.several_models import Models, judge_several
from pruner_zero.evolution.study import INTERRUPTED, RUN, Study
from pruner_zero.execution.executor import Executor
from pruner_zero.execution.start import cluster_of, make_executor
from pruner_zero.files import check_writable, locked, write_json, writing
from pruner_zero.journal import Journal
from pruner_zero.metric.metric import Metric
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import as_language_model
from pruner_zero.models.matrices import size_of
from pruner_zero.provenance import provenance
from pruner_zero.settings.base import name_of, names_of
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.mixture import Source, load_mixture

# A search ends after this many candidates in a row that are repeats or rejected.
_CANDIDATES_WITHOUT_NEWS = 480


@dataclass(frozen=True)
class Status:
    """How far a search is, after each batch.

    avoided: how many proposals were dropped without being asked, by the reason.
    """

    batch: int
    elapsed: float
    records: Sequence[Record]
    hall_of_fame: HallOfFame
    avoided: Mapping[str, int]
    budget: str

    @classmethod
    def of(
        cls, archive: Archive, algorithm: BatchAlgorithm, settings: SearchSettings, hall: HallOfFame
    ) -> "Status":
        """The status of a search after its last batch."""
        records, avoided = archive.records, dict(algorithm.avoided)
        return cls(archive.batches, archive.elapsed, records, hall, avoided, settings.budget)

    @property
    def by_rung(self) -> list[int]:
        """How many distinct candidates ended on each rung, rejected ones first."""
        counts = [0, 0, 0, 0]
        for record in self.records:
            if record.evaluation.same_as is None:
                counts[record.evaluation.rung] += 1
        return counts

    @property
    def saved(self) -> int:
        """How many proposals and candidates were not judged, because their form was known."""
        repeats = sum(record.evaluation.same_as is not None for record in self.records)
        return repeats + sum(self.avoided.values())

    @property
    def per_minute(self) -> float:
        """Candidates per minute, including duplicates and rejected ones."""
        return 60 * len(self.records) / self.elapsed if self.elapsed else 0.0


# Called with the status after every batch.
Observer = Callable[[Status], None]


def search(
    model: str | Path | LanguageModel | Any = None,
    *,
    output: str | Path,
    others: Sequence[str | Path | LanguageModel] = (),
    calibration: Source | Mapping[Any, float] | None = None,
    search_text: Source | Mapping[Any, float] | None = None,
    tokenizer: Any = None,
    cache: str | Path | None = None,
    config: str | Path | None = None,
    algorithm: str | type[BatchAlgorithm] | None = None,
    observer: Observer = lambda status: None,
    **settings: Any,
) -> Study:
    """Search for the metric under which pruning `model` costs least, into the folder `output`.

    model, calibration: as `prune` takes them. others: more models, which candidates are judged on
    too. search_text: the texts that candidates are judged on;
    where it is left out, or is the same text, statistics are collected on the first half of the
    calibration text and candidates judged on the second half, or on later windows of the text
    that the model writes (`self`).
    algorithm: a name, or a subclass of `BatchAlgorithm`.
    settings: the other fields of `SearchSettings`, at least a sparsity or pattern and a budget;
    config: a YAML file of them.

    Where `output` holds an unfinished run of the same settings, that run is continued, and its
    archive ends as if it had never been interrupted. An interruption (KeyboardInterrupt) ends the
    search and keeps everything. Raises PrunerZeroError, naming what to change.
    """
    asked = {
        **settings,
        "model": name_of(model),
        "others": [name_of(other) for other in others] or None,
        "calibration": names_of(calibration),
        "search_text": names_of(search_text),
    }
    if isinstance(algorithm, str):
        asked["algorithm"] = algorithm
    elif algorithm is not None:
        asked |= {"algorithm": algorithm.__name__}
        asked.setdefault("space", algorithm.default_space)
    checked = read_settings(SearchSettings, asked, config)
    folder = Path(output)
    _check_folder(folder)
    check_settings(checked)
    cluster = cluster_of(checked.ray_address)
    made = make_algorithm(
        algorithm or checked.algorithm,
        space_of(checked),
        checked.seed,
        checked.algorithm_settings,
        [Metric.of(text) for text in checked.seed_metrics],
    )
    source = checked.calibration if calibration is None else calibration
    texts = load_mixture(source, "calibration")
    text = checked.search_text if search_text is None else search_text
    judged_on = texts if text is None else load_mixture(text, "search")
    given = [checked.model if model is None else model, *(others or checked.others)]
    loaded = [as_language_model(each, tokenizer, **checked.loading) for each in given]
    place = None if cache is None else Path(cache)
    # The smallest first: what a candidate loses there says whether the others are asked.
    loaded.sort(key=lambda language_model: size_of(language_model.model)[0])
    judged = [JudgedModel.of(each, checked, texts, judged_on, place) for each in loaded]
    models = None
    if len(loaded) > 1:
        models = Models.named([each.name for each in loaded])
    with locked(folder):
        identity = checked.identity() | joined([each.identity(checked) for each in judged], models)
        archive = Archive(folder, identity)
        description = {
            "settings": checked.model_dump(mode="json"),
            **joined([each.describe() for each in judged], models),
            "provenance": {**provenance(), "device": str(loaded[0].device)},
        }
        if models is not None:
            description["models"] = list(models.names)
        write_json(folder / RUN, description)
        evaluators = [each.evaluator(checked) for each in judged]
        # Only tensors in main memory can be shared between processes.
        shareable = all(evaluator.masked.device == CPU for evaluator in evaluators)
        judge: Judge = evaluators[0]
        if models is not None:
            kept = Journal(folder / "references", identity, overwrite=True)
            scope: Group = "unit" if checked.structure else "row"
            judge = judge_several(models, evaluators, scope, kept)
        executor = make_executor(judge, checked.workers, cluster, shareable=shareable)
        try:
            stopped = run_batches(made, archive, executor, checked, folder, observer, models)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        finally:
            executor.close()
    return Study.open(folder, stopped)


def run_batches(
    algorithm: BatchAlgorithm,
    archive: Archive,
    executor: Executor[Task, Outcome],
    settings: SearchSettings,
    folder: Path,
    observer: Observer,
    models: Models | None = None,
) -> str:
    """Ask, judge, tell, until a budget is spent, then the final race; return why it stopped.

    models: the models where they are several.
    """
    start = time.monotonic() - archive.elapsed
    # The published search judges every candidate on all windows.
    racing = Racing(direct=settings.algorithm == "published", models=models)
    with_news = 0
    reason: str | None = None
    # The batches of an earlier process are replayed to the end.
    while not reason or archive.replaying:
        batch = algorithm.ask(archive.begun or _left(settings, archive.records))
        if not batch:
            reason = "the search space is exhausted"
            break
        archive.begin(batch)
        records = judge_batch(batch, archive, executor, racing)
        algorithm.tell([(record.candidate, record.evaluation) for record in records])
        archive.commit(records, time.monotonic() - start, algorithm.avoided)
        # With the winner of an earlier final race.
        race = FinalRace.of(archive.records, archive.outcomes, archive.journal.finalists, models)
        hall = HallOfFame.of(archive.records, race.choice, models)
        # The files of an earlier process know more than the batches replayed so far.
        if not archive.replaying:
            hall.write(folder)
        status = Status.of(archive, algorithm, settings, hall)
        observer(status)
        if any(record.evaluation.counts for record in records):
            with_news = len(archive.records)
        reason = _stops(settings, status)
        if len(archive.records) - with_news >= _CANDIDATES_WITHOUT_NEWS:
            reason = reason or f"nothing new among {_CANDIDATES_WITHOUT_NEWS} candidates"
    finalists: list[int] = []
    if settings.final_windows:
        most = FINALISTS
        if settings.minutes is not None:
            seconds = 60 * settings.minutes * FINAL_SHARE
            windows = settings.final_windows * (len(models.names) if models else 1)
            most = affordable(archive.outcomes, archive.elapsed, windows, seconds)
        race = race_finalists(archive, executor, most, models)
        finalists = [finalist.record.candidate.number for finalist in race.finalists]
        hall = HallOfFame.of(archive.records, race.choice, models)
        hall.write(folder)
        observer(Status.of(archive, algorithm, settings, hall))
    archive.end(finalists)
    return reason


def _left(settings: SearchSettings, records: Sequence[Record]) -> int | None:
    """How many candidates may still be judged; None where their number has no limit."""
    if settings.evaluations is None:
        return None
    return max(0, settings.evaluations - sum(r.evaluation.same_as is None for r in records))


def _stops(settings: SearchSettings, status: Status) -> str | None:
    """Why the budget ends the search now; None where it does not."""
    if _left(settings, status.records) == 0:
        return f"{settings.evaluations} distinct candidates evaluated"
    final = FINAL_SHARE if settings.final_windows else 0.0
    if settings.minutes is not None and status.elapsed >= 60 * settings.minutes * (1 - final):
        return f"{settings.minutes:g} minutes spent"
    return None


def _check_folder(folder: Path) -> None:
    with writing(folder):
        if folder.is_file():
            raise PrunerZeroError(f"{folder} is a file: choose another folder for the run")
        if folder.is_dir():
            names = {path.name for path in folder.iterdir()}
            if names and not names & {JOURNAL, ".lock"}:
                raise PrunerZeroError(
                    f"{folder} is not empty and holds no run: choose another folder"
                )
            if not names and Path.cwd().is_relative_to(folder.resolve()):
                raise PrunerZeroError(f"{folder} is the current folder: choose a folder inside it")
        check_writable(folder / RUN)
