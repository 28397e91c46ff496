"""From settings to the calibration text and its windows."""

from collections.abc import Iterable
from pathlib import Path

from pruner_zero.errors import PrunerZeroError
from pruner_zero.progress import Progress
from pruner_zero.pruning.method import Method
from pruner_zero.settings import CalibrationSettings
from pruner_zero.text import Corpus, Tokenizer, Windows, load_corpus, no_windows, random_windows


def calibration_corpus(
    text: str | Path | Corpus | Iterable[str] | None, methods: Iterable[Method], progress: Progress
) -> Corpus | None:
    """The calibration text; None where none is given and no method looks at statistics.

    Raises PrunerZeroError where a method does.
    """
    if text is not None:
        return load_corpus(text, role="calibration", progress=progress)
    for method in methods:
        if method.kinds | method.allocation_kinds:
            raise PrunerZeroError(
                f"{method.name} needs statistics of the model on a text: give --calibration, such "
                "as --calibration builtin:pydoc"
            )
    return None


def calibration_windows(
    corpus: Corpus | None, tokenizer: Tokenizer, settings: CalibrationSettings
) -> Windows:
    """The windows that statistics are collected on, none without a text."""
    if corpus is None:
        return no_windows()
    return random_windows(corpus, tokenizer, settings.windows, settings.seqlen, settings.seed)
