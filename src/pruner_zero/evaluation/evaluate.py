"""`evaluate`: the perplexity of any model on any text, or its scores in tasks, in one call."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from pruner_zero.devices import find_devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evaluation.perplexity import Perplexity, perplexity
from pruner_zero.evaluation.tasks import TaskResult, evaluate_tasks
from pruner_zero.models import Dtype, LanguageModel, as_language_model
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text import Corpus, consecutive_windows, load_corpus


@overload
def evaluate(
    model: str | Path | LanguageModel | Any,
    text: str | Path | Corpus | Iterable[str],
    *,
    seqlen: int = 1024,
    windows: int | None = None,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress = SILENT,
) -> Perplexity: ...


@overload
def evaluate(
    model: str | Path | LanguageModel | Any,
    *,
    tasks: str | Sequence[str],
    fewshot: int | None = None,
    limit: int | None = None,
    task_folder: str | Path | None = None,
    batch_size: int = 1,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress = SILENT,
) -> TaskResult: ...


def evaluate(
    model: str | Path | LanguageModel | Any,
    text: str | Path | Corpus | Iterable[str] | None = None,
    *,
    seqlen: int = 1024,
    windows: int | None = None,
    tasks: str | Sequence[str] | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    task_folder: str | Path | None = None,
    batch_size: int = 1,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress = SILENT,
) -> Perplexity | TaskResult:
    """How good `model` is: its perplexity on `text`, or its scores in `tasks`.

    model: what `load_model` takes, or a model object with its `tokenizer`. text: a corpus
    name, file, or strings, of which the first `windows` windows are read, all where None.
    tasks: names of lm-eval, as a list or comma-separated; see `evaluate_tasks` for the rest.
    device: as `load_model` and `as_language_model` take it.
    For both, load the model once and call twice. Raises PrunerZeroError.
    """
    if (text is None) == (tasks is None):
        raise PrunerZeroError("give a text to measure perplexity on, or tasks: one of them")
    if tasks is not None:
        names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else tasks
        return evaluate_tasks(
            model,
            names,
            fewshot=fewshot,
            limit=limit,
            folder=task_folder,
            batch_size=batch_size,
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    assert text is not None
    find_devices(device)
    corpus = load_corpus(text, role="test", progress=progress)
    language_model = as_language_model(model, tokenizer, dtype, device)
    chosen = consecutive_windows(corpus, language_model.tokenizer, seqlen, windows)
    return perplexity(language_model, chosen, progress)
