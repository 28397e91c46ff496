"""The windows of a mixture of texts, those that the model writes itself among them."""

from pathlib import Path

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.models import LanguageModel
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text import Mixture, SelfText, Windows, mix_windows, random_windows


def take_windows(
    mixture: Mixture,
    language_model: LanguageModel,
    windows: int,
    seqlen: int,
    seed: int,
    *,
    first_written: int = 0,
    folder: str | Path | None = None,
    progress: Progress = SILENT,
) -> Windows:
    """`windows` windows of `seqlen` tokens, divided among the texts of `mixture` by its shares.

    Those of a corpus are at random places; those that the model writes are taken from number
    `first_written` on and kept under `folder` (default: the cache). The same seed is used for
    each text. Raises PrunerZeroError as `Mixture.divide`, `random_windows` and `self_windows` do.
    """
    sources = []
    for text, count in zip(mixture.texts, mixture.divide(windows), strict=True):
        if isinstance(text, SelfText):
            source = self_windows(
                language_model,
                count,
                seqlen,
                seed,
                first=first_written,
                folder=folder,
                progress=progress,
            )
        else:
            source = random_windows(text, language_model.tokenizer, count, seqlen, seed)
        sources.append(source)
    return mix_windows(sources)
