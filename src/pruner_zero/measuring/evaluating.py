"""`evaluate`: the perplexity of a model on a text, its scores in tasks, or its speed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, overload

from pruner_zero.devices import torch_threads
from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.perplexity import Perplexity, perplexity
from pruner_zero.measuring.speed import Speed, measure_speed
from pruner_zero.measuring.tasks import TaskResult, evaluate_tasks
from pruner_zero.models.language_model import LanguageModel, check_tokens, note_long_windows
from pruner_zero.models.load import as_language_model
from pruner_zero.models.predictions import compare_predictions
from pruner_zero.models.structure import check_finite
from pruner_zero.settings.base import name_of
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.settings.read import read_settings
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
    **settings: Any,
) -> Perplexity: ...


@overload
def evaluate(
    model: Source,
    *,
    tasks: str | Sequence[str],
    tokenizer: Any = None,
    **settings: Any,
) -> TaskResult: ...


@overload
def evaluate(
    model: Source,
    *,
    speed: Literal[True],
    tokenizer: Any = None,
    **settings: Any,
) -> Speed: ...


def evaluate(
    model: Source,
    text: Text | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    speed: bool = False,
    tokenizer: Any = None,
    **settings: Any,
) -> Perplexity | TaskResult | Speed:
    """How good `model` is: its perplexity on `text`, or its scores in `tasks`; or its speed.

    model: what `load_model` takes, or a model object with its `tokenizer`. text: what
    `load_corpus` takes. tasks: names of lm-eval, as a list or with commas between them.
    settings: the remaining fields of `EvaluateSettings`, such as seqlen=2048 or limit=100.
    speed: measure the speed of the model and, in turn, of the models in the setting `beside`, which
    with tasks is one model, whose answers are compared question by question, and with a text one
    model from whose predictions the divergence is measured. For several, load the model once and
    call again. Raises PrunerZeroError, naming what to change.
    """
    if [text is not None, tasks is not None, speed].count(True) != 1:
        raise PrunerZeroError("give a text to measure perplexity on, tasks, or speed: one of them")
    values = {**settings, "model": name_of(model), "text": name_of(text), "tasks": tasks}
    checked = read_settings(EvaluateSettings, {**values, "speed": speed})
    texts = [] if text is None else [text]
    perplexities, *others = measure(checked, model, texts, tokenizer)
    return next(result for result in (*perplexities, *others) if result is not None)


def measure(
    settings: EvaluateSettings,
    model: Source,
    texts: Sequence[Text] = (),
    tokenizer: Any = None,
) -> tuple[list[Perplexity], TaskResult | None, Speed | None]:
    """The perplexity on each text, the scores in tasks, the speed; None for what is not asked.

    The model is loaded once, after the texts and the tasks. Raises PrunerZeroError, also where a
    weight is not finite.
    """

    def load(source: Source, tokenizer: Any = None, revision: str | None = None) -> LanguageModel:
        loading = {**settings.loading, "revision": revision}
        loaded = as_language_model(source, tokenizer, **loading)
        # Numbers of one byte are codes of a quantized model.
        named = loaded.model.named_parameters()
        check_finite((name, weights) for name, weights in named if weights.itemsize > 1)
        return loaded

    load_measured = cache(partial(load, model, tokenizer, settings.revision))
    # A revision is of the hub repository of the evaluated model alone.
    load_beside = [cache(partial(load, name)) for name in settings.beside]
    corpora = [load_corpus(text, role="test") for text in texts]
    scores = speed = None
    with torch_threads(settings.threads):
        if settings.tasks is not None:
            scores = evaluate_tasks(load_measured, settings)
            for load_other in load_beside:
                scores = scores.beside(evaluate_tasks(load_other, settings))
        if settings.speed:
            models = [load_measured(), *(load_other() for load_other in load_beside)]
            speed = measure_speed(models, settings.seqlen)
        perplexities: list[Perplexity] = []
        for corpus in corpora:
            measured, seqlen = load_measured(), settings.seqlen
            windows = consecutive_windows(corpus, measured.tokenizer, seqlen, settings.windows)
            if not perplexities:
                note_long_windows(measured.model, seqlen)
            result, batch = perplexity(measured, windows, settings.batch_size), settings.batch_size
            for load_other in load_beside:
                dense = load_other()
                check_tokens(dense.model, windows.tokens)
                compared = compare_predictions(measured.model, dense.model, windows.tokens, batch)
                result = replace(result, beside=dense.name, compared=compared)
            perplexities.append(result)
    return perplexities, scores, speed
