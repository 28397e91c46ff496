"""From settings to the calibration texts and their windows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pruner_zero.calibration import take_windows
from pruner_zero.models import LanguageModel, check_tokens
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.method import Method
from pruner_zero.settings import CalibrationSettings
from pruner_zero.text import Mixture, SelfText, Source, Windows, load_mixture, no_windows


def calibration_texts(
    source: Source | Mapping[Any, float] | None,
    methods: Iterable[Method],
    progress: Progress,
    *,
    needed: bool = False,
) -> Mixture | None:
    """The calibration texts; where none is given, text that the model writes itself.

    None where no text is given, no method looks at statistics, and nothing else has `needed` one.
    """
    if source is None:
        if not needed and not any(method.kinds for method in methods):
            return None
        progress.note("no --calibration is given: the model writes the text itself (self)")
        source = SelfText.name
    return load_mixture(source, role="calibration", progress=progress)


def calibration_windows(
    texts: Mixture | None,
    language_model: LanguageModel,
    settings: CalibrationSettings,
    folder: str | Path | None = None,
    fingerprint: str | None = None,
    progress: Progress = SILENT,
) -> Windows:
    """The windows that statistics are collected on, none without a text.

    folder: the cache for windows that the model writes. fingerprint: as `self_windows` takes it.
    Raises PrunerZeroError as `take_windows`
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
        fingerprint=fingerprint,
        progress=progress,
    )
    check_tokens(language_model.model, windows.tokens)
    return windows
