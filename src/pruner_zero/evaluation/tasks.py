"""Zero-shot and few-shot tasks, measured by lm-eval."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import sem
from torch.utils import _pytree as pytree

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.hub import hub_reachable
from pruner_zero.models import LanguageModel, half_products
from pruner_zero.models.read import quiet
from pruner_zero.progress import SILENT, Progress
from pruner_zero.provenance import provenance
from pruner_zero.table import Tabular

# The names under which `datasets` reads local files.
_FILE_READERS = ("arrow", "csv", "json", "parquet", "text")
# lm-eval's own seed for the choice of examples, so that few-shot figures compare with others'.
_SEED = 1234
# Resamplings for the standard errors that have no closed form; `acc` and `acc_norm` have one.
_RESAMPLINGS = 1000


@dataclass(frozen=True, repr=False)
class TaskResult(Tabular):
    """A model's scores in tasks, in the order asked for, and where they come from.

    rows: for each task, and each group of tasks, its version, number of examples and of
    documents, and lm-eval's metrics, each with its standard error as `METRIC_stderr`, None where
    it has none. A metric that passes through a filter of lm-eval is named `METRIC,FILTER`. A
    multiple-choice task has the metric `prob` too, the mean of its probabilities.
    probabilities: for each multiple-choice task, the probability of each question's right choice:
    the softmax over the choices of their log-likelihoods. Accuracy counts only which choice comes
    first; the probability tells two models apart with fewer questions. `beside` adds how these
    differ from another model's.
    """

    rows: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    probabilities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def beside(self, base: "TaskResult") -> "TaskResult":
        """The result with the differences from the model of `base` in the same questions.

        A multiple-choice task gets `gain`, the mean by which the probability of the right choice is
        higher than the base's, and `moved`, the mean of how far it is from it either way, each with
        its standard error over the questions. Answers that become right and answers that become
        wrong cancel out in `gain` and in accuracy, not in `moved`.
        Source: answers that change beside accuracy, Dutta et al. 2024 (2407.09141).
        """
        rows = []
        for row in self.rows:
            mine, others = (result.probabilities.get(row["task"]) for result in (self, base))
            if mine and others:
                gains = [value - other for value, other in zip(mine, others, strict=True)]
                moved = [abs(gain) for gain in gains]
                row = {**row, **_mean("gain", gains), **_mean("moved", moved)}
            rows.append(row)
        settings = {**self.settings, "beside": base.settings.get("model")}
        return replace(self, rows=tuple(rows), settings=settings)

    def caption(self) -> str:
        """How many tasks, and which model."""
        return f"{len(self.rows)} tasks, {self.settings.get('model', 'a model')}"

    def to_json(self) -> dict[str, Any]:
        """`tasks` (the rows), `probabilities`, `settings` and `provenance` as JSON values."""
        return {
            "tasks": [dict(row) for row in self.rows],
            "probabilities": {
                task: [round(value, 5) for value in values]
                for task, values in self.probabilities.items()
            },
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }


@half_products()
def evaluate_tasks(
    load: Callable[[], LanguageModel],
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 1,
    apply_chat_template: bool = False,
    progress: Progress = SILENT,
    harness: Callable[[LanguageModel, int], Any] | None = None,
) -> TaskResult:
    """A model's scores in the tasks, groups and tags `names`, measured by lm-eval.

    load: gives the model, once the tasks are loaded. num_fewshot: examples before each question,
    the task's own number where None. limit: only the first questions of each task.
    include_path: a folder of task files (`.yaml`) that override lm-eval's own; data files that
    they name by a relative path are looked for in the current folder, then in this one.
    batch_size: requests in a forward pass. apply_chat_template: questions are asked as the
    tokenizer's chat template writes them. The model is used in place, with log-probabilities in
    float32. harness: makes lm-eval's model from the language model and the batch size,
    `harness_model` where None.
    Raises PrunerZeroError where lm-eval is missing, a task is unknown or cannot be run, its data
    cannot be had or have too few examples, and where log-probabilities are NaN.
    """
    if not names or not all(names):
        raise PrunerZeroError("no task is named: give some, such as --tasks arc_easy,boolq")
    folder = None if include_path is None else Path(include_path)
    with _quiet(progress):
        manager = _manager(names, folder)
        items: list[Any] = []
        for name in progress.track(names, "task data", len(names)):
            loaded = _load(manager, name, folder)
            group = loaded["groups"].get(name)
            items += loaded["tasks"].values() if group is None else [group]
        tasks = manager.load(items)
        for task in tasks["tasks"].values():
            _set_examples(task, num_fewshot)
        language_model = load()
        if apply_chat_template and not getattr(language_model.tokenizer, "chat_template", None):
            raise PrunerZeroError(
                "the tokenizer has no chat template: leave out --apply-chat-template"
            )
        try:
            results = _lm_eval().evaluate(
                (harness or harness_model)(language_model, batch_size),
                tasks,
                limit=limit,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=apply_chat_template,
                bootstrap_iters=_RESAMPLINGS,
            )
        except ValueError as error:
            raise PrunerZeroError(f"lm-eval cannot run these tasks: {one_line(error)}") from error
    _check_numbers(results["samples"])
    settings = {
        "model": language_model.name,
        "tasks": list(names),
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "apply_chat_template": apply_chat_template,
    }
    versions = {**provenance(), "lm_eval": _lm_eval().__version__}
    probabilities = {
        task: values
        for task, samples in results["samples"].items()
        if results["configs"][task]["output_type"] == "multiple_choice"
        and (values := _probabilities(samples))
    }
    return TaskResult(tuple(_rows(results, probabilities)), settings, versions, probabilities)


def harness_model(language_model: LanguageModel, batch_size: int) -> Any:
    """`language_model` as an `HFLM` of lm-eval, with log-probabilities in float32."""
    return _lm_eval().models.huggingface.HFLM(
        pretrained=language_model.model,
        # A copy, because lm-eval gives its tokenizer a padding token.
        tokenizer=copy.deepcopy(language_model.tokenizer),
        softmax_dtype="float32",
        batch_size=batch_size,
    )


def _lm_eval() -> Any:
    try:
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise PrunerZeroError(
            "tasks need lm-eval: pip install 'lm-eval[hf]', or measure perplexity on a text"
        ) from error
    return lm_eval


@contextmanager
def _quiet(progress: Progress) -> Iterator[None]:
    """Keep lm-eval's bars and warnings off stderr, unless `progress` draws bars there as well.

    A warning that contexts were shortened is passed on as a remark.
    """
    if progress.bars:
        yield
        return
    logger = logging.getLogger("lm_eval")
    with quiet() as written:
        handler = logging.StreamHandler(written)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
    shortened = [line for line in written.getvalue().splitlines() if "runcat" in line]
    if shortened:
        progress.note(f"lm-eval: {shortened[0]}")


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The TaskManager that knows `names`."""
    task_manager = _lm_eval().tasks.TaskManager
    if folder is not None:
        if not folder.is_dir():
            raise PrunerZeroError(f"there is no folder {folder}: give one that holds task files")
        folder = folder.resolve()
        manager = task_manager(include_path=str(folder), include_defaults=False)
        # lm-eval's own task files are thousands: reading them takes seconds.
        if set(names) <= set(manager.all_subtasks):
            return manager
    manager = task_manager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            where = "lm-eval" if folder is None else f"{folder} or lm-eval"
            near = " or ".join(map(repr, get_close_matches(name, manager.all_tasks)))
            hint = f"did you mean {near}?" if near else "`lm-eval ls tasks` lists them"
            raise PrunerZeroError(f"no task '{name}' in {where}: {hint}")
    return manager


def _load(manager: Any, name: str, folder: Path | None) -> Any:
    """lm-eval's `tasks` and `groups` for one name, with their data."""
    instead = "give a folder of tasks whose data are local files (--include-path)"
    # None for groups and for tasks written in Python, whose data are not known before loading.
    data = (manager.task_index[name].cfg or {}).get("dataset_path")
    local = data is None or data in _FILE_READERS or Path(data).exists()
    if not local and not hub_reachable():
        raise PrunerZeroError(
            f"task {name} needs its data from the Hugging Face hub, which cannot be reached: "
            f"set HF_HUB_OFFLINE=1 if they are in its cache, or {instead}"
        )
    try:
        try:
            return manager.load([name])
        except FileNotFoundError:
            if folder is None:
                raise
            with chdir(folder):
                return manager.load([name])
    except Exception as error:
        # `datasets` and a task's own code raise errors of any type.
        raise PrunerZeroError(
            f"task {name} could not be loaded ({one_line(error)}): correct it, or {instead}"
        ) from error


def _set_examples(task: Any, num_fewshot: int | None) -> None:
    """Give `task` its number of examples and their seed, as lm-eval's own command does.

    A task that states 0 stays at 0. Raises PrunerZeroError where there are too few documents;
    lm-eval would then silently use fewer examples.
    """
    stated = task.config.num_fewshot
    wanted = stated if num_fewshot is None or stated == 0 else num_fewshot
    task.set_config("num_fewshot", wanted or 0)
    task.set_fewshot_seed(_SEED)
    if wanted and wanted >= (available := len(list(task.fewshot_docs() or ()))):
        raise PrunerZeroError(
            f"task {task.config.task} has {available} documents to take examples from: choose "
            f"--num-fewshot {max(available - 1, 0)} or less"
        )


def _check_numbers(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    answers = pytree.tree_leaves([sample["resps"] for task in samples.values() for sample in task])
    if any(isinstance(answer, float) and math.isnan(answer) for answer in answers):
        raise PrunerZeroError(
            "the model's log-probabilities are NaN: its weights are damaged or its dtype is too "
            "narrow, try --dtype float32"
        )


def _probabilities(samples: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """The probability of the right choice of each question, in the order of the questions.

    Empty where a question has several right choices, none, or one that is not named by its number.
    """
    values = []
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        target, answers = sample["target"], sample["filtered_resps"]
        if not isinstance(target, int | np.integer) or not 0 <= target < len(answers):
            return ()
        likelihoods = torch.tensor([float(answer[0]) for answer in answers])
        values.append(float(likelihoods.double().softmax(0)[int(target)]))
    return tuple(values)


def _rows(
    results: Mapping[str, Any], probabilities: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    """lm-eval's results as rows, with `prob`; the keys of metrics are `metric,filter`."""
    for task, values in results["results"].items():
        row = {
            "task": task,
            "version": str(results["versions"].get(task, "")),
            "num_fewshot": results["n-shot"].get(task),
            "documents": values["sample_len"],
        }
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            suffix = "" if filtered == "none" else f",{filtered}"
            row[f"{metric}{suffix}"] = _number(value)
            row[f"{metric}_stderr{suffix}"] = _number(values.get(f"{metric}_stderr,{filtered}"))
        if task in probabilities:
            row |= _mean("prob", probabilities[task])
        yield row


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """The mean of the values under this name, and its standard error where there are several."""
    error = float(sem(values)) if len(values) > 1 else None
    return {name: fmean(values), f"{name}_stderr": error}


def _number(value: object) -> float | None:
    """A finite number; lm-eval writes "N/A" where a metric has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
