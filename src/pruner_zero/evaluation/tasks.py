"""Zero-shot and few-shot tasks through lm-eval: how often a model picks the right answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero.devices import find_devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evaluation.harness import (
    harness_model,
    import_lm_eval,
    load_tasks,
    quiet,
    seeded,
)
from pruner_zero.models import Dtype, LanguageModel, as_language_model
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import provenance
from pruner_zero.table import Tabular

# lm-eval's own for the choice of examples, so that few-shot figures compare with others'.
SEED = 1234
# Resamplings for the standard errors that have no closed form; `acc` and `acc_norm` have one.
RESAMPLINGS = 1000

# Both come first wherever they occur. `acc`: the choice of the highest log-probability is the
# right one; `acc_norm`: the same with each divided by the choice's length in characters.
ACCURACIES = ("acc", "acc_norm")
# lm-eval's plain `perplexity` is that of a whole target, not of a token as in `Perplexity`.
_RENAMED = {"perplexity": "target_perplexity"}


@dataclass(frozen=True)
class Score:
    """One metric's mean over the documents of a task, and its standard error where known."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class TaskScores:
    """What a model reached in one task, or in a group of them.

    fewshot: examples before each question, None for a group that mixes numbers.
    documents: questions asked. scores: by metric, `acc` and `acc_norm` first; one that passes
    through a filter of lm-eval is named `metric,filter`. member: belongs to a group that is
    listed too.
    """

    task: str
    version: str | None
    fewshot: int | None
    documents: int
    scores: Mapping[str, Score]
    member: bool = False


@dataclass(frozen=True, repr=False)
class TaskResult(Tabular):
    """A model's scores in all tasks, in the order asked for, and where they come from."""

    tasks: tuple[TaskScores, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def caption(self) -> str:
        """Whose scores they are."""
        return f"{len(self.tasks)} tasks, {self.settings.get('model', 'a model')}"

    def to_rows(self) -> list[dict[str, Any]]:
        """A row a task: each metric, and its standard error as `METRIC_stderr`."""
        return [
            {
                "task": task.task,
                "version": task.version,
                "fewshot": task.fewshot,
                "documents": task.documents,
                **{name: score.value for name, score in task.scores.items()},
                **{f"{name}_stderr": one.standard_error for name, one in task.scores.items()},
            }
            for task in self.tasks
        ]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics that occur, `acc` and `acc_norm` first."""
        names = {name: None for task in self.tasks for name in task.scores}
        return tuple(sorted(names, key=_place))

    def mean(self, metric: str) -> float | None:
        """The plain mean of `metric` over the tasks, groups as one; None where one lacks it."""
        scores = [task.scores.get(metric) for task in self.tasks if not task.member]
        values = [score.value for score in scores if score is not None]
        return sum(values) / len(values) if values and len(values) == len(scores) else None

    def to_json(self) -> dict[str, Any]:
        """All scores by task and metric, the settings and the provenance as JSON values."""
        return {
            "tasks": {
                task.task: {
                    "version": task.version,
                    "fewshot": task.fewshot,
                    "documents": task.documents,
                    "scores": {
                        name: {
                            "value": score.value if math.isfinite(score.value) else None,
                            "standard_error": score.standard_error,
                        }
                        for name, score in task.scores.items()
                    },
                }
                for task in self.tasks
            },
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }


def evaluate_tasks(
    model: str | Path | LanguageModel | Any,
    names: Sequence[str],
    *,
    fewshot: int | None = None,
    limit: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 1,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress = SILENT,
) -> TaskResult:
    """The scores of `model` in the tasks, groups and tags `names` of lm-eval.

    fewshot: examples before each question, the task's own number where None. limit: only the
    first questions of each task. folder: task files (`.yaml`) that come before lm-eval's own,
    such as ones whose data are local files. batch_size: requests at once. device: as `load_model`
    takes it. The model, loaded once
    the tasks are there, is used in place, with fp32 log-probabilities. Raises PrunerZeroError where
    lm-eval is missing, a task is unknown, its data cannot be had or holds too few examples,
    and where the model is damaged.
    """
    _check(names, fewshot, limit, batch_size)
    find_devices(device)
    harness = import_lm_eval()
    with quiet(progress), seeded(SEED):
        loaded = load_tasks(names, Path(folder) if folder is not None else None, progress)
        for task in loaded["tasks"].values():
            _set_examples(task, fewshot)
        language_model = as_language_model(model, tokenizer, dtype, device)
        found = harness.evaluator.evaluate(
            harness_model(language_model, batch_size, progress),
            loaded,
            limit=limit,
            bootstrap_iters=RESAMPLINGS,
            log_samples=False,
        )
    settings = {
        "model": language_model.name,
        "tasks": list(names),
        "fewshot": fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "seed": SEED,
    }
    return TaskResult(_rows(found), settings, {**provenance(), "lm_eval": harness.__version__})


def _check(names: Sequence[str], fewshot: int | None, limit: int | None, batch_size: int) -> None:
    if not names or not all(names):
        raise PrunerZeroError("no task is named: give some, such as --tasks arc_easy,boolq")
    if len(set(names)) < len(names):
        raise PrunerZeroError("a task is named twice in --tasks: name each once")
    for option, given, least in (
        ("--fewshot", fewshot, 0),
        ("--limit", limit, 1),
        ("--batch-size", batch_size, 1),
    ):
        if given is not None and given < least:
            raise PrunerZeroError(f"{option} is {given}: give {least} or more")


def _set_examples(task: Any, fewshot: int | None) -> None:
    """Give `task` its number of examples; one whose own number is 0 stays at that.

    Raises PrunerZeroError where there are too few documents besides the one asked about.
    """
    own = task.config.num_fewshot
    task.set_config("num_fewshot", (own or 0) if fewshot is None or own == 0 else fewshot)
    task.set_fewshot_seed(SEED)
    wanted = task.config.num_fewshot
    if wanted and fewshot is not None:
        there = len(list(task.fewshot_docs() or ()))
        if wanted >= there:
            raise PrunerZeroError(
                f"task {task.config.task} has {there} documents to take examples from: choose "
                f"--fewshot {max(there - 1, 0)} or less"
            )


def _rows(found: Mapping[str, Any]) -> tuple[TaskScores, ...]:
    """lm-eval's answer as rows: its keys are `metric,filter` and `metric_stderr,filter`."""
    groups = found.get("group_subtasks", {})
    members = {name for inside in groups.values() for name in inside}
    return tuple(
        TaskScores(
            task,
            None if (version := found["versions"].get(task)) is None else str(version),
            found["n-shot"].get(task),
            values["sample_len"],
            _scores(values),
            member=task in members,
        )
        for task, values in found["results"].items()
    )


def _scores(values: Mapping[str, Any]) -> dict[str, Score]:
    scores = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        # lm-eval writes "N/A" where a metric has no standard error.
        known = float(error) if isinstance(error, int | float) else math.nan
        metric = _RENAMED.get(metric, metric)
        name = metric if filtered == "none" else f"{metric},{filtered}"
        scores[name] = Score(float(value), known if math.isfinite(known) else None)
    return dict(sorted(scores.items(), key=lambda one: _place(one[0])))


def _place(metric: str) -> tuple[int, str]:
    return (ACCURACIES.index(metric) if metric in ACCURACIES else len(ACCURACIES), metric)
