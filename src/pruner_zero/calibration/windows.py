"""Calibration text: the windows of a mixture of texts, and the store of their statistics."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruner_zero.calibration.calibrate import StatisticsStore, open_store
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.choices import SELF
from pruner_zero.models.language_model import LanguageModel, check_tokens, note_long_windows
from pruner_zero.progress import note
from pruner_zero.text.mixture import Mixture, SelfText, Source, load_mixture
from pruner_zero.text.token_windows import Windows, mix_windows, no_windows, random_windows


def calibration_texts(
    source: Source | Mapping[Any, float] | None,
    needed: bool,
    *,
    scripts: str | None = None,
) -> Mixture | None:
    """The calibration texts; where none is named but `needed`, text that the model writes itself.

    scripts: as in `load_text`. None where no text is named and none is needed.
    """
    if source is None:
        if not needed:
            return None
        note("no --calibration is given: the model writes the text itself (self)")
        source = SELF
    return load_mixture(source, "calibration", scripts=scripts)


def open_calibration(
    texts: Mixture | None,
    language_model: LanguageModel,
    shape: tuple[int, int],
    seed: int,
    cache: str | Path | None = None,
) -> tuple[Windows, StatisticsStore]:
    """The windows that statistics are collected on, none without a text, and the statistics' store.

    shape: the number of windows and the tokens in each. cache: the folder for statistics and for
    windows that the model writes. Raises PrunerZeroError as `take_windows` and `check_tokens` do.
    """
    # Computed once, because it reads all weights.
    fingerprint = language_model.fingerprint()
    windows = no_windows()
    if texts is not None:
        windows = take_windows(
            texts, language_model, *shape, seed, folder=cache, fingerprint=fingerprint
        )
        check_tokens(language_model.model, windows.tokens)
        note_long_windows(language_model.model, windows.seqlen)
    store = open_store(language_model, windows, folder=cache, fingerprint=fingerprint)
    return windows, store


def take_windows(
    mixture: Mixture,
    language_model: LanguageModel,
    windows: int,
    seqlen: int,
    seed: int,
    *,
    first_written: int = 0,
    after: int | None = None,
    option: str = "--windows",
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> Windows:
    """`windows` windows of `seqlen` tokens, divided among the texts of `mixture` by its shares.

    Windows of a corpus are at random places; windows that the model writes are taken from number
    `first_written` on and kept under `folder` (default: the cache). after: take windows that do not
    overlap, and skip this many of the same mixture. The same seed is used for each text.
    option: what sets the number of windows, for a message. fingerprint: as `self_windows` takes it.
    Raises PrunerZeroError as `Mixture.divide`,
    `random_windows` and `self_windows` do.
    """
    sources = []
    before = mixture.divide(after, option) if after else [0] * len(mixture.texts)
    counts = zip(mixture.texts, mixture.divide(windows, option), before, strict=True)
    for text, count, skipped in counts:
        if isinstance(text, SelfText):
            source = self_windows(
                language_model,
                count,
                seqlen,
                seed,
                text=text,
                first=first_written + skipped,
                folder=folder,
                fingerprint=fingerprint,
            )
        else:
            drawn = random_windows(
                text,
                language_model.tokenizer,
                count + skipped,
                seqlen,
                seed,
                apart=after is not None,
            )
            source = replace(drawn, tokens=drawn.tokens[skipped:])
        sources.append(source)
    return mix_windows(sources)
