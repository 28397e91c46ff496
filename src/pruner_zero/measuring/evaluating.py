"""`evaluate`: the perplexity of a model on texts, its scores in tasks, its speed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, overload

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import check_file, write_json
from pruner_zero.measuring.origin import Measured, origin_of, to_json
from pruner_zero.measuring.perplexity import Perplexity, perplexity
from pruner_zero.measuring.speed import Speed, check_speed, measure_speed
from pruner_zero.measuring.tasks import TaskResult, evaluate_tasks, load_tasks
from pruner_zero.models.language_model import LanguageModel, check_tokens, note_long_windows
from pruner_zero.models.load import as_language_model
from pruner_zero.models.matrices import check_finite
from pruner_zero.models.predictions import Divergence, compare_predictions, differing_tokens
from pruner_zero.progress import note
from pruner_zero.settings.base import name_of
from pruner_zero.settings.evaluate_settings import EvaluateSettings
from pruner_zero.settings.read_settings import read_settings
from pruner_zero.text.corpus import SOURCES, Corpus, load_corpus
from pruner_zero.text.token_windows import Windows, consecutive_windows

Source = str | Path | LanguageModel | Any
Text = str | Path | Corpus | Iterable[str]


@overload
def evaluate(model: Source, text: Sequence[Path | Corpus], **settings: Any) -> list[Perplexity]: ...


@overload
def evaluate(model: Source, text: Text, **settings: Any) -> Perplexity: ...


@overload
def evaluate(model: Source, *, tasks: str | Sequence[str], **settings: Any) -> TaskResult: ...


@overload
def evaluate(model: Source, *, speed: Literal[True], **settings: Any) -> Speed: ...


def evaluate(
    model: Source,
    text: Text | Sequence[Path | Corpus] | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    speed: bool = False,
    output: str | Path | None = None,
    tokenizer: Any = None,
    **settings: Any,
) -> Measured | list[Perplexity]:
    """How good `model` is: its perplexity on `text`, or its scores in `tasks`; or its speed.

    model: what `load_model` takes, or a model object with its `tokenizer`. text: what
    `load_corpus` takes, or a list of names, paths and corpora, for a list of perplexities; a list
    of other strings is one text. tasks: names of lm-eval, as a list or with commas between them.
    speed: measure the speed of the model and, in turn, of the models in the setting `beside`, which
    with tasks is one model, whose answers are compared question by question, and with a text one
    model from whose predictions the divergence is measured. output: a JSON file for the figures and
    where they come from, written after each text; an earlier one is replaced. settings: the
    remaining fields of `EvaluateSettings`, such as seqlen=2048 or limit=100. For text and tasks,
    load the model once and call again. Raises PrunerZeroError, naming what to change.
    """
    if [text is not None, tasks is not None, speed].count(True) != 1:
        raise PrunerZeroError("give a text to measure perplexity on, tasks, or speed: one of them")
    several = isinstance(text, list | tuple) and bool(text) and all(map(_is_source, text))
    texts: Any = text if several else [] if text is None else [text]
    values = {**settings, "model": name_of(model), "text": [name_of(each) for each in texts]}
    checked = read_settings(EvaluateSettings, {**values, "tasks": tasks, "speed": speed})
    results: list[Any] = list(measure(checked, model, texts, output, tokenizer))
    return results if several else results[0]


def _is_source(text: object) -> bool:
    """Whether `text` is a corpus, a path, or the name of a corpus or file."""
    named = isinstance(text, str) and (text.partition("/")[0] in SOURCES or os.path.isfile(text))
    return named or isinstance(text, Path | Corpus)


def measure(
    settings: EvaluateSettings,
    model: Source,
    texts: Sequence[Text] = (),
    output: str | Path | None = None,
    tokenizer: Any = None,
) -> Iterator[Measured]:
    """The scores in tasks, the speed, and the perplexity on each text, as soon as they are known.

    What can be refused is refused before anything is measured. output: the JSON file, written after
    each result. Raises PrunerZeroError, also where a weight is not finite.
    """
    earlier = {"losses", "texts", "tasks", "speed"}
    file = None if output is None else check_file(output, earlier)
    results: list[Measured] = []
    for result in _measure(settings, model, texts, tokenizer):
        results.append(result)
        if file:
            write_json(file, to_json(results, complete=False))
        yield result
    if file:
        write_json(file, to_json(results))


def _measure(
    settings: EvaluateSettings, model: Source, texts: Sequence[Text], tokenizer: Any
) -> Iterator[Measured]:
    corpora = [load_corpus(text, role="test") for text in texts]
    asked = settings.tasks is not None
    # lm-eval keeps the state of a run in its tasks, so that each model has tasks that are new.
    tasks = [load_tasks(settings) for _ in (model, *settings.beside)] if asked else []
    measured = _load(model, settings, tokenizer)
    beside = [_load(name, settings) for name in settings.beside]
    models = [measured, *beside]
    # Of each text the windows of each model.
    windows = [
        [consecutive_windows(text, m.tokenizer, settings.seqlen, settings.windows) for m in models]
        for text in corpora
    ]
    for number, each in enumerate(models):
        if settings.speed:
            check_speed(each, settings.seqlen)
        for of_text in windows:
            check_tokens(each.model, of_text[number].tokens)
    apart = bool(windows and beside) and _is_apart(measured, beside[0], windows)
    if windows:
        note_long_windows(measured.model, settings.seqlen)
    provenance = origin_of(measured)
    if asked:
        provenance["lm_eval"] = metadata.version("lm_eval")
    if beside:
        provenance["beside"] = {each.name: each.fingerprint() for each in beside}
    origin: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "provenance": provenance,
    }
    if asked:
        scores = evaluate_tasks(tasks[0], measured, settings)
        try:
            for others, dense in zip(tasks[1:], beside, strict=True):
                scores = scores.beside(evaluate_tasks(others, dense, settings))
        finally:
            # What was measured before an error is a result too; the error comes after it.
            yield replace(scores, **origin)
    if settings.speed:
        yield replace(measure_speed(models, settings.seqlen), **origin)
    size = settings.batch_size
    for part, *others in windows:
        result = replace(perplexity(measured, part, size), **origin)
        try:
            for dense, other in zip(beside, others, strict=True):
                compared: Divergence | Perplexity
                if apart:
                    compared = perplexity(dense, other, size)
                else:
                    compared = compare_predictions(measured.model, dense.model, part.tokens, size)
                result = replace(result, beside=dense.name, compared=compared)
        finally:
            yield result


def _is_apart(
    measured: LanguageModel, dense: LanguageModel, windows: Sequence[Sequence[Windows]]
) -> bool:
    """Whether `dense` has other tokens, so that bits per byte are all that compares.

    Raises PrunerZeroError where the bytes of a text are unknown then.
    """
    how = differing_tokens(measured, dense)
    if how is None:
        return False
    apart = f"{dense.name} has other tokens than {measured.name} ({how}):"
    if any(part.text_bytes is None for of_text in windows for part in of_text):
        raise PrunerZeroError(
            f"{apart} a divergence has no meaning, and bits per byte are unknown where a tokenizer "
            "does not tell the bytes of its tokens: leave out --beside"
        )
    note(f"{apart} a divergence has no meaning, so that bits per byte are compared")
    return True


def _load(source: Source, settings: EvaluateSettings, tokenizer: Any = None) -> LanguageModel:
    loaded = as_language_model(source, tokenizer, **settings.loading)
    # Numbers of one byte are codes of a quantized model.
    named = loaded.model.named_parameters()
    check_finite((name, weights) for name, weights in named if weights.itemsize > 1)
    if settings.apply_chat_template and not getattr(loaded.tokenizer, "chat_template", None):
        raise PrunerZeroError(
            f"the tokenizer of {loaded.name} has no chat template: leave out --apply-chat-template"
        )
    return loaded
