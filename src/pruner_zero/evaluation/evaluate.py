"""`evaluate`: the perplexity of a model on a text, its scores in tasks, or its speed."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, overload

from pruner_zero.devices import torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evaluation.perplexity import Perplexity, perplexity
from pruner_zero.evaluation.speed import Speed, measure_speed
from pruner_zero.evaluation.tasks import TaskResult, evaluate_tasks
from pruner_zero.models import LanguageModel, as_language_model
from pruner_zero.progress import SILENT, Progress
from pruner_zero.settings import EvaluateSettings, name_of, read_settings
from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.windows import consecutive_windows

Source = str | Path | LanguageModel | Any
Text = str | Path | Corpus | Iterable[str]


@overload
def evaluate(
    model: Source,
    text: Text,
    *,
    tokenizer: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Perplexity: ...


@overload
def evaluate(
    model: Source,
    *,
    tasks: str | Sequence[str],
    tokenizer: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> TaskResult: ...


@overload
def evaluate(
    model: Source,
    *,
    speed: Literal[True],
    tokenizer: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Speed: ...


def evaluate(
    model: Source,
    text: Text | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    speed: bool = False,
    tokenizer: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Perplexity | TaskResult | Speed:
    """How good `model` is: its perplexity on `text`, or its scores in `tasks`; or its speed.

    model: what `load_model` takes, or a model object with its `tokenizer`. text: what
    `load_corpus` takes. tasks: names of lm-eval, as a list or with commas between them.
    settings: the remaining fields of `EvaluateSettings`, such as seqlen=2048 or limit=100.
    speed: measure the speed of the model and, in turn, of the models in the setting `beside`, which
    with tasks is one model, whose answers are compared question by question. For
    several, load the model once and call again. Raises PrunerZeroError, naming what to change.
    """
    if [text is not None, tasks is not None, speed].count(True) != 1:
        raise PrunerZeroError("give a text to measure perplexity on, tasks, or speed: one of them")
    given = {**settings, "model": name_of(model), "text": name_of(text), "tasks": tasks}
    given["speed"] = speed
    checked = read_settings(EvaluateSettings, given)
    results = measure(checked, model, text, tokenizer, progress)
    return next(result for result in results if result is not None)


def measure(
    settings: EvaluateSettings,
    model: Source,
    text: Text | None = None,
    tokenizer: Any = None,
    progress: Progress = SILENT,
) -> tuple[Perplexity | None, TaskResult | None, Speed | None]:
    """The perplexity on `text`, the scores in tasks, the speed; None for what is not asked.

    The model is loaded once, after the text and the tasks. Raises PrunerZeroError.
    """

    @cache
    def load() -> LanguageModel:
        return as_language_model(model, tokenizer, **settings.loading)

    corpus = None if text is None else load_corpus(text, role="test", progress=progress)
    scores = None
    # A revision is of the hub repository of the evaluated model.
    of_others = {**settings.loading, "revision": None}
    with torch_threads(settings.threads):
        if settings.tasks is not None:
            scores = _scores(settings, load, progress)
            for name in settings.beside:
                base = partial(as_language_model, name, None, **of_others)
                scores = scores.beside(_scores(settings, base, progress))
        speed = None
        if settings.speed:
            others = [as_language_model(name, None, **of_others) for name in settings.beside]
            speed = measure_speed([load(), *others], settings.seqlen, progress=progress)
        if corpus is None:
            return None, scores, speed
        windows = consecutive_windows(corpus, load().tokenizer, settings.seqlen, settings.windows)
        measured = perplexity(load(), windows, progress, settings.batch_size)
        return measured, scores, speed


def _scores(
    settings: EvaluateSettings, load: Callable[[], LanguageModel], progress: Progress
) -> TaskResult:
    """The scores in the tasks of the model that `load` gives."""
    return evaluate_tasks(
        load,
        [name.strip() for name in (settings.tasks or "").split(",")],
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        include_path=settings.include_path,
        batch_size=settings.batch_size,
        apply_chat_template=settings.apply_chat_template,
        progress=progress,
    )
