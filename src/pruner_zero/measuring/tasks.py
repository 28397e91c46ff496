"""Zero-shot and few-shot tasks, measured by lm-eval."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy.stats import sem
from torch.utils._pytree import tree_leaves

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.files import hub_reachable
from pruner_zero.measuring.origin import Measured
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.next_token import in_float32
from pruner_zero.models.quiet import quiet
from pruner_zero.progress import note, receiver, track
from pruner_zero.settings.evaluate_settings import EvaluateSettings

# The names under which `datasets` reads local files.
_FILE_READERS = ("arrow", "csv", "json", "parquet", "text")


@dataclass(frozen=True, repr=False)
class TaskResult(Measured):
    """A model's scores in tasks, in the order asked for.

    rows: for each task and group of tasks its version, the numbers of examples and documents, and
    lm-eval's metrics (`METRIC,FILTER` after a filter), each with its standard error as
    `METRIC_stderr`, None where it has none. probabilities: for each multiple-choice task, the
    probability of each question's right choice, the softmax over the choices of their
    log-likelihoods; `prob` is its mean. Accuracy counts only which choice comes first; the
    probability tells two models apart with fewer questions.
    """

    rows: tuple[Mapping[str, Any], ...]
    probabilities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def beside(self, base: "TaskResult") -> "TaskResult":
        """The result with the differences from the model of `base` in the same questions.

        A multiple-choice task gets `gain`, the mean of the changes of the probability of the right
        choice, and `moved`, the mean of their absolute values, each with its standard error over
        the questions. Answers that become right and answers that become wrong cancel out in `gain`
        and in accuracy, not in `moved`. Source: Dutta et al. 2024 (2407.09141).
        """
        rows = []
        for row in self.rows:
            values, others = (r.probabilities.get(row["task"]) for r in (self, base))
            if values and others:
                gains = [value - other for value, other in zip(values, others, strict=True)]
                row = {**row, **_mean("gain", gains), **_mean("moved", list(map(abs, gains)))}
            rows.append(row)
        return replace(self, rows=tuple(rows))

    def caption(self) -> str:
        """How many tasks, and which model."""
        return f"{len(self.rows)} tasks, {self.settings.get('model', 'a model')}"

    def figures(self) -> dict[str, Any]:
        """`tasks` (the rows) and `probabilities` as JSON values."""
        rounded = {task: [round(p, 5) for p in ps] for task, ps in self.probabilities.items()}
        return {"tasks": [dict(row) for row in self.rows], "probabilities": rounded}


def load_tasks(settings: EvaluateSettings) -> Any:
    """The tasks, groups and tags of lm-eval that `settings` name, for one `evaluate_tasks`.

    Data files that a task names by a relative path are looked for in `settings.include_path`.
    Raises PrunerZeroError where lm-eval is missing, a task is unknown, or its data cannot be had or
    have too few examples.
    """
    names = [name.strip() for name in (settings.tasks or "").split(",")]
    if not all(names):
        raise PrunerZeroError("no task is named: give some, such as --tasks arc_easy,boolq")
    with _quiet():
        tasks = _load_tasks(names, settings.include_path)
        for task in tasks["tasks"].values():
            _set_examples(task, settings.num_fewshot)
    return tasks


def evaluate_tasks(tasks: Any, model: LanguageModel, settings: EvaluateSettings) -> TaskResult:
    """The scores of `model` in tasks that `load_tasks` has loaded.

    Raises PrunerZeroError where a task cannot be run, and where log-probabilities are NaN.
    """
    chat = settings.apply_chat_template
    with _quiet():
        try:
            # Not simple_evaluate: it seeds all generators, runs git in the user's folder, and lists
            # the machine's packages, which takes seconds.
            with in_float32(model.model):
                results = _lm_eval().evaluate(
                    harness_model(model, settings.batch_size),
                    tasks,
                    limit=settings.limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,
                    # For standard errors without a closed form; those of acc and acc_norm have one.
                    bootstrap_iters=1000,
                )
        except (ValueError, AssertionError) as error:
            # lm-eval asserts, without a message, that a choice fits into the model's context.
            reason = one_line(str(error) or "a choice may be longer than the model's context")
            raise PrunerZeroError(f"lm-eval cannot run these tasks: {reason}") from error
    samples = results["samples"]
    answers = tree_leaves([sample["resps"] for task in samples.values() for sample in task])
    if any(isinstance(answer, float) and math.isnan(answer) for answer in answers):
        raise PrunerZeroError(
            "the model's log-probabilities are NaN: its weights are damaged or its dtype is too "
            "narrow, try --dtype float32"
        )
    choices = [t for t in samples if results["configs"][t]["output_type"] == "multiple_choice"]
    probabilities = {t: ps for t in choices if (ps := _probabilities(samples[t]))}
    return TaskResult(tuple(_rows(results, probabilities)), probabilities)


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
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars and warnings off stderr, unless progress is drawn as bars there too.

    A warning that contexts were shortened is passed on as a remark.
    """
    if receiver().bars:
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
        note(f"lm-eval: {shortened[0]}")


def _load_tasks(names: Sequence[str], folder: str | None) -> Any:
    """lm-eval's tasks and groups of these names, with their data."""
    if folder is not None and not Path(folder).is_dir():
        raise PrunerZeroError(f"there is no folder {folder}: give one that holds task files")
    path = folder and str(Path(folder).resolve())
    manager = _lm_eval().tasks.TaskManager(include_path=path, include_defaults=False)
    # lm-eval's own task files are thousands: reading them takes seconds.
    if not set(names) <= set(manager.all_subtasks):
        manager = _lm_eval().tasks.TaskManager(include_path=path)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        near = " or ".join(map(repr, get_close_matches(unknown[0], manager.all_tasks)))
        hint = f"did you mean {near}?" if near else "`lm-eval ls tasks` lists them"
        where = "lm-eval" if folder is None else f"{folder} or lm-eval"
        raise PrunerZeroError(f"no task '{unknown[0]}' in {where}: {hint}")
    instead = "give a folder of tasks whose data are local files (--include-path)"
    loaded: list[Any] = []
    with chdir(path or "."):
        for name in track(names, "task data", len(names)):
            # None for groups and for tasks written in Python, whose data are not known before
            # loading.
            data = (manager.task_index[name].cfg or {}).get("dataset_path")
            local = data is None or data in _FILE_READERS or Path(data).exists()
            if not local and not hub_reachable():
                raise PrunerZeroError(
                    f"task {name} needs its data from the Hugging Face hub, which cannot be "
                    f"reached: set HF_HUB_OFFLINE=1 if they are in its cache, or {instead}"
                )
            try:
                tasks = manager.load([name])
            except Exception as error:
                # `datasets` and a task's own code raise errors of any type.
                raise PrunerZeroError(
                    f"task {name} could not be loaded ({one_line(error)}): correct it, or {instead}"
                ) from error
            group = tasks["groups"].get(name)
            loaded += tasks["tasks"].values() if group is None else [group]
    return manager.load(loaded)


def _set_examples(task: Any, num_fewshot: int | None) -> None:
    """Give `task` its number of examples and lm-eval's seed for them, as lm-eval's command does.

    A task that states 0 stays at 0. Raises PrunerZeroError where there are too few documents;
    lm-eval would then silently use fewer examples.
    """
    stated = task.config.num_fewshot
    wanted = stated if num_fewshot is None or stated == 0 else num_fewshot
    task.set_config("num_fewshot", wanted or 0)
    task.set_fewshot_seed(1234)
    if wanted and wanted >= (available := len(list(task.fewshot_docs() or ()))):
        raise PrunerZeroError(
            f"task {task.config.task} has {available} documents to take examples from: choose "
            f"--num-fewshot {max(available - 1, 0)} or less"
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
            if comma and not metric.endswith("_stderr"):
                suffix = "" if filtered == "none" else f",{filtered}"
                row[f"{metric}{suffix}"] = _number(value)
                row[f"{metric}_stderr{suffix}"] = _number(values.get(f"{metric}_stderr,{filtered}"))
        yield row | (_mean("prob", probabilities[task]) if task in probabilities else {})


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """The mean of the values under this name, and its standard error where there are several."""
    error = float(sem(values)) if len(values) > 1 else None
    return {name: fmean(values), f"{name}_stderr": error}


def _number(value: object) -> float | None:
    """A finite number; lm-eval writes "N/A" where a metric has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
