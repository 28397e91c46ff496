"""Training and validation windows of a recovery, and the order of training windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.mixture import Mixture
from pruner_zero.text.token_windows import (
    RANDOM_CHARACTERS,
    Tokenizer,
    Windows,
    begun,
    consecutive_windows,
    mix_windows,
)

HELD_OUT = 0.1
# The most windows of a validation.
VALIDATION_WINDOWS = 8


@dataclass(frozen=True)
class Split:
    """The windows of each text to train on, with the texts' shares, and those to validate on."""

    texts: Sequence[Windows]
    shares: Sequence[float]
    validation: Windows

    @property
    def training(self) -> Windows:
        """The windows of all texts to train on."""
        return mix_windows(self.texts)

    def in_training_order(self, seed: int, skipped: int = 0) -> Iterator[Tensor]:
        """An endless sequence of windows (1, seqlen), epoch after epoch.

        The texts take turns so that each has its share of every beginning of the sequence
        (D'Hondt's method). An epoch of a text cuts its stream at a random offset and visits the
        windows in random order. `seed` and the number of a window in the sequence determine it, so
        that a resumed run passes the number of windows to be `skipped`.
        """
        streams = [_epochs(text, seed) for text in self.texts]
        drawn = [0] * len(streams)
        for number in count():
            turns = [(taken + 1) / share for taken, share in zip(drawn, self.shares, strict=True)]
            index = turns.index(min(turns))
            drawn[index] += 1
            window = next(streams[index])
            if number >= skipped:
                yield window


def split_windows(
    corpus: Corpus, tokenizer: Tokenizer, seqlen: int, validation_windows: int
) -> tuple[Windows, Windows]:
    """All windows of the text's first nine tenths, and at most `validation_windows` of its last.

    Only the first RANDOM_CHARACTERS characters are used, which bounds the time of tokenizing.
    Raises PrunerZeroError where either part is shorter than a window.
    """
    text = corpus.text[:RANDOM_CHARACTERS]
    cut = round(len(text) * (1 - HELD_OUT))
    if not text[cut:].strip():
        raise PrunerZeroError(
            f"corpus {corpus.name} is too short for a last tenth to validate on: choose more text"
        )
    training = Corpus(f"{corpus.name} (first nine tenths)", text[:cut], corpus.joined)
    held_out = Corpus(f"{corpus.name} (last tenth)", text[cut:], corpus.joined)
    # The shorter part first: its error message says how much text is needed.
    validation = consecutive_windows(held_out, tokenizer, seqlen)
    validation = replace(validation, tokens=validation.tokens[:validation_windows])
    return consecutive_windows(training, tokenizer, seqlen), validation


def split_texts(
    mixture: Mixture,
    readers: Sequence[LanguageModel],
    teacher: LanguageModel | None,
    settings: RecoverSettings,
    fingerprint: str | None,
    cache: str | Path | None,
) -> Split:
    """The windows of `mixture` to train on, and to validate on by its shares.

    readers: the models that read them, of the same tokens. fingerprint, cache: of the teacher, and
    the folder, as `self_windows` takes them. Raises PrunerZeroError where the windows do not suit
    the readers or --batch.
    """
    training, validation = [], []
    counts = mixture.divide(VALIDATION_WINDOWS, None)
    for text, number in zip(mixture.texts, counts, strict=True):
        if isinstance(text, Corpus):
            learned, held_out = split_windows(text, readers[0].tokenizer, settings.seqlen, number)
        else:
            assert teacher is not None
            sizes = (settings.windows, settings.seqlen, settings.seed)
            written = self_windows(
                teacher, *sizes, text=text, folder=cache, fingerprint=fingerprint
            )
            name, tokens = written.corpus, written.tokens
            cut = len(tokens) - max(1, round(len(tokens) * HELD_OUT))
            learned = replace(written, corpus=f"{name} (first nine tenths)", tokens=tokens[:cut])
            held_out = replace(written, corpus=f"{name} (last tenth)", tokens=tokens[cut:][:number])
        training.append(learned)
        validation.append(held_out)
    split = Split(training, mixture.shares, mix_windows(validation))
    for part in (split.training, split.validation):
        for reader in readers:
            check_tokens(reader.model, part.tokens)
    if settings.batch > (most := len(split.training)):
        raise PrunerZeroError(
            f"--batch is {settings.batch}: the text has {most} windows to train on, choose no "
            "more, or a longer text"
        )
    return split


def _epochs(text: Windows, seed: int) -> Iterator[Tensor]:
    stream = text.tokens[:, len(text.start) :].flatten()
    length = text.seqlen - len(text.start)
    generator = torch.Generator().manual_seed(seed)
    offsets = min(length, len(stream) - length + 1)
    while True:
        offset = int(torch.randint(offsets, (), generator=generator))
        count = (len(stream) - offset) // length
        for index in torch.randperm(count, generator=generator).tolist():
            first = offset + index * length
            yield begun(stream[None, first : first + length], text.start)
