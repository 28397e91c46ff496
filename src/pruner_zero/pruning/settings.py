"""From settings to the calibration texts, their windows, and the store of statistics."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pruner_zero.calibration import StatisticsStore, open_store, take_windows
from pruner_zero.models import LanguageModel, check_tokens
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.removal import chosen_by
from pruner_zero.settings import CalibrationSettings
from pruner_zero.text.mixture import Mixture, SelfText, Source, load_mixture
from pruner_zero.text.windows import Windows, no_windows


def calibration_texts(
    source: Source | Mapping[Any, float] | None,
    methods: Iterable[Method],
    progress: Progress,
) -> Mixture | None:
    """The calibration texts; where none is given, text that the model writes itself.

    None where no text is given and no method needs one.
    """
    if source is None:
        if not any(m.kinds or m.distill or chosen_by(m.pattern) for m in methods):
            return None
        progress.note("no --calibration is given: the model writes the text itself (self)")
        source = SelfText.name
    return load_mixture(source, role="calibration", progress=progress)


def open_calibration(
    texts: Mixture | None,
    language_model: LanguageModel,
    settings: CalibrationSettings,
    cache: str | Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Windows, StatisticsStore]:
    """The windows that statistics are collected on, none without a text, and the statistics' store.

    cache: the folder for statistics and for windows that the model writes. Raises PrunerZeroError
    as `take_windows` and `check_tokens` do.
    """
    # Computed once, because it reads all weights.
    fingerprint = language_model.fingerprint()
    windows = no_windows()
    if texts is not None:
        windows = take_windows(
            texts,
            language_model,
            settings.windows,
            settings.seqlen,
            settings.seed,
            folder=cache,
            fingerprint=fingerprint,
            progress=progress,
        )
        check_tokens(language_model.model, windows.tokens, progress=progress)
    store = open_store(
        language_model,
        windows,
        folder=cache,
        fingerprint=fingerprint,
    )
    return windows, store
