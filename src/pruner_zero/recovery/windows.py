"""Training and validation windows of a recovery, and the order of training windows."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from pruner_zero.calibration import self_windows
from pruner_zero.models import LanguageModel
from pruner_zero.progress import Progress
from pruner_zero.settings import RecoverSettings
from pruner_zero.text import Corpus, Tokenizer, Windows, consecutive_windows
from pruner_zero.text.windows import RANDOM_CHARACTERS

HELD_OUT = 0.1


def split_windows(
    corpus: Corpus, tokenizer: Tokenizer, seqlen: int, validation_windows: int
) -> tuple[Windows, Windows]:
    """All windows of the text's first nine tenths, and at most `validation_windows` of its last.

    Only the first RANDOM_CHARACTERS characters are used, which bounds the time of tokenizing.
    Raises PrunerZeroError where either part is shorter than a window.
    """
    text = corpus.text[:RANDOM_CHARACTERS]
    cut = round(len(text) * (1 - HELD_OUT))
    training = Corpus(f"{corpus.name} (first nine tenths)", text[:cut], corpus.joined)
    held_out = Corpus(f"{corpus.name} (last tenth)", text[cut:], corpus.joined)
    # The shorter part first: its error message says how much text is needed.
    validation = consecutive_windows(held_out, tokenizer, seqlen)
    validation = replace(validation, tokens=validation.tokens[:validation_windows])
    return consecutive_windows(training, tokenizer, seqlen), validation


def written_windows(
    teacher: LanguageModel, settings: RecoverSettings, progress: Progress
) -> tuple[Windows, Windows]:
    """Windows that `teacher` writes: the first nine tenths, and of the last as `split_windows`.

    Raises PrunerZeroError as `self_windows` does.
    """
    count = settings.windows
    written = self_windows(teacher, count, settings.seqlen, settings.seed, progress=progress)
    cut = count - max(1, round(count * HELD_OUT))
    training, held_out = written.tokens[:cut], written.tokens[cut:]
    return (
        replace(written, tokens=training, corpus=f"{written.corpus} (first nine tenths)"),
        replace(
            written,
            tokens=held_out[: settings.validation_windows],
            corpus=f"{written.corpus} (last tenth)",
        ),
    )


def in_training_order(windows: Windows, seed: int, skipped: int = 0) -> Iterator[Tensor]:
    """An endless sequence of windows (1, seqlen) of the same stream, epoch after epoch.

    Each epoch cuts the stream at a random offset and visits its windows in random order. `seed`
    and the place in the sequence determine a window, so a resumed run passes the number of
    windows to be `skipped`.
    """
    yield from islice(_epochs(windows.tokens.flatten(), windows.seqlen, seed), skipped, None)


def _epochs(stream: Tensor, seqlen: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = min(seqlen, len(stream) - seqlen + 1)
    while True:
        offset = int(torch.randint(offsets, (), generator=generator))
        count = (len(stream) - offset) // seqlen
        for index in torch.randperm(count, generator=generator).tolist():
            start = offset + index * seqlen
            yield stream[None, start : start + seqlen]
