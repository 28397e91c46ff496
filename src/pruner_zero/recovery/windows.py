"""The text of a recovery: what is learned, what is held out, and the order of windows."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from pruner_zero.text import Corpus, Tokenizer, Windows, consecutive_windows
from pruner_zero.text.windows import RANDOM_CHARACTERS

HELD_OUT = 0.1


def split_windows(
    corpus: Corpus, tokenizer: Tokenizer, seqlen: int, validation_windows: int
) -> tuple[Windows, Windows]:
    """All windows of the text's first nine tenths, and some of its last tenth.

    Only the first RANDOM_CHARACTERS characters count, which keeps the tokenizing of a huge
    text short. At most `validation_windows` windows are held out, fewer where the last tenth
    has no more. Raises PrunerZeroError where either part is shorter than a window.
    """
    text = corpus.text[:RANDOM_CHARACTERS]
    cut = round(len(text) * (1 - HELD_OUT))
    training = Corpus(f"{corpus.name} (first nine tenths)", text[:cut], corpus.joined)
    held_out = Corpus(f"{corpus.name} (last tenth)", text[cut:], corpus.joined)
    # The shorter part first: its error is the one that says how much text is needed.
    validation = consecutive_windows(held_out, tokenizer, seqlen)
    validation = replace(validation, tokens=validation.tokens[:validation_windows])
    return consecutive_windows(training, tokenizer, seqlen), validation


def in_training_order(windows: Windows, seed: int, skipped: int = 0) -> Iterator[Tensor]:
    """Windows (1, seqlen) of the same stream without end, epoch after epoch.

    Each epoch cuts the stream anew, from a random offset, and goes through all its windows in
    random order. `seed` and the place in the sequence decide a window, so that a run goes on
    from the number of windows it has `skipped`.
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
