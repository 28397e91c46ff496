"""`evaluate`: the perplexity of any model on any text, in one call."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pruner_zero.evaluation.perplexity import Perplexity, perplexity
from pruner_zero.models import Dtype, LanguageModel, as_language_model
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text import Corpus, consecutive_windows, load_corpus


def evaluate(
    model: str | Path | LanguageModel | Any,
    text: str | Path | Corpus | Iterable[str],
    *,
    seqlen: int = 1024,
    windows: int | None = None,
    tokenizer: Any = None,
    dtype: Dtype = "auto",
    progress: Progress = SILENT,
) -> Perplexity:
    """The perplexity of `model` on the first `windows` windows of `text`, all where None.

    model: what `load_model` takes, or a model object with its `tokenizer`. text: a corpus
    name, file, or strings. Raises PrunerZeroError.
    """
    corpus = load_corpus(text, role="test", progress=progress)
    language_model = as_language_model(model, tokenizer, dtype)
    chosen = consecutive_windows(corpus, language_model.tokenizer, seqlen, windows)
    return perplexity(language_model, chosen, progress)
