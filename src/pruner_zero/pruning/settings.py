"""From settings to the calibration texts and their windows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pruner_zero.calibration import take_windows
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, check_tokens
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.method import Method
from pruner_zero.settings import CalibrationSettings
from pruner_zero.text import Mixture, Source, Windows, load_mixture, no_windows


def calibration_texts(
    source: Source | Mapping[Any, float] | None, methods: Iterable[Method], progress: Progress
) -> Mixture | None:
    """The calibration texts; None where none is given and no method looks at statistics.

    Raises PrunerZeroError where a method does.
    """
    if source is not None:
        return load_mixture(source, role="calibration", progress=progress)
    for method in methods:
        if method.kinds | method.allocation_kinds:
            raise PrunerZeroError(
                f"{method.name} needs statistics of the model on a text: give --calibration, such "
                "as --calibration builtin:pydoc"
            )
    return None


def calibration_windows(
    texts: Mixture | None,
    language_model: LanguageModel,
    settings: CalibrationSettings,
    folder: str | Path | None = None,
    progress: Progress = SILENT,
) -> Windows:
    """The windows that statistics are collected on, none without a text.

    folder: the cache for those that the model writes. Raises PrunerZeroError as `take_windows`
    and `check_tokens` do.
    """
    if texts is None:
        return no_windows()
    windows = take_windows(
        texts,
        language_model,
        settings.windows,
        settings.seqlen,
        settings.seed,
        folder=folder,
        progress=progress,
    )
    check_tokens(language_model.model, windows.tokens)
    return windows
