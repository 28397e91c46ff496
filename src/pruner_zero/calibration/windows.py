"""The windows of a mixture of texts, including text that the model writes itself."""

from dataclasses import replace
from pathlib import Path

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.models import LanguageModel
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text.mixture import Mixture, SelfText
from pruner_zero.text.windows import Windows, mix_windows, random_windows


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
    progress: Progress = SILENT,
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
                first=first_written + skipped,
                folder=folder,
                fingerprint=fingerprint,
                progress=progress,
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
