"""Text that a dense model writes itself: its windows, kept in the cache, and what it is like."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruner_zero.cache import cache_key, filling, use
from pruner_zero.choices import SELF, SELF_CHAT, SELF_DOCUMENTS
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import default_cache
from pruner_zero.models.dialogue import dialogue, encode, plain_document, prompt_document, turn_ends
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.sampling import (
    Document,
    control_tokens,
    end_tokens,
    sample_windows,
    start_token,
    writing_dtype,
)
from pruner_zero.progress import note
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.mixture import SelfText
from pruner_zero.text.scripts import count_scripts, describe_shares, tokens_outside
from pruner_zero.text.token_windows import Windows, begun, start_of, tokens_sha256
from pruner_zero.version import __version__

# Half of the dialogues begin with one of these, in turn, and the model completes the request: left
# alone, a model tuned on code asks about code in most of its dialogues.
OPENINGS = (
    "Write a news report about",
    "Explain how to",
    "Write an encyclopedia article about",
    "Write a program that",
    "Tell a story about",
    "Why",
    "Write a letter to",
    "Write the documentation of",
    "Write a conversation between",
    "Solve step by step:",
    "Write a review of",
    "Write an essay about",
)


def documents_of(language_model: LanguageModel, text: SelfText) -> tuple[list[Document], str]:
    """The documents that windows of `text` hold in turn, and what they are.

    Raises PrunerZeroError where `text` is self:chat and the tokenizer has no chat template, and as
    `plain_document` and `prompt_document` do.
    """
    if text.prompts:
        documents = [prompt_document(language_model, prompt) for prompt in text.prompts]
        return documents, f"answers of the dense model to {len(documents)} prompts"
    if text.name == SELF_CHAT:
        chat = dialogue(language_model)
        if chat is None:
            raise PrunerZeroError(
                f"the tokenizer of {language_model.name} has no chat template that shows a user's "
                "words: give self:documents"
            )
        before, after = chat
        begun = [(before + encode(language_model.tokenizer, words), after) for words in OPENINGS]
        documents = [document for opened in begun for document in (chat, opened)]
        return documents, "dialogues that the dense model wrote by its chat template"
    document = plain_document(language_model)
    shown = language_model.tokenizer.convert_ids_to_tokens(document[0][0])
    return [document], f"documents that the dense model wrote from {shown!r} on"


def repeated_shares(tokens: Tensor, documents: Sequence[Document]) -> Tensor:
    """The share of the 4-grams of each window (n, tokens) that it has before: (n,), float64.

    Those inside a piece of `documents` are not counted.
    """
    pieces = {gram for document in documents for piece in document for gram in _grams(piece)}
    counted = [[g for g in _grams(window) if g not in pieces] for window in tokens.tolist()]
    shares = [1 - len(set(grams)) / max(1, len(grams)) if grams else 0.0 for grams in counted]
    return torch.tensor(shares, dtype=torch.float64)


def _grams(tokens: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]


def describe_written(
    tokens: Tensor, documents: Sequence[Document], tokenizer: Any
) -> dict[str, Any]:
    """A sample of windows (n, tokens), the share of each script, and how much repeats itself."""
    rows = tokens.tolist()
    openings = sorted({document[0] for document in documents}, key=len, reverse=True)
    # Of the first window that begins with a document, without what the model did not write.
    begun = (row[len(o) :] for row in rows for o in openings if tuple(row[: len(o)]) == o)
    sample = tokenizer.decode(next(begun, rows[0]), skip_special_tokens=True)
    whole = " ".join(tokenizer.batch_decode(rows, skip_special_tokens=True))
    return {
        "sample": " ".join(sample.split())[:200],
        "scripts": {name: round(share, 4) for name, share in count_scripts(whole).items()},
        "repeated": round(float(repeated_shares(tokens, documents).mean()), 4),
    }


def unusual_scripts(facts: Mapping[str, Any], tokenizer: Any) -> dict[str, float]:
    """The scripts of more than a tenth of what was written that the chat template does not have.

    facts: as by `describe_written`. A tokenizer without a chat template stands for Latin.
    """
    usual = _usual_scripts(tokenizer)
    return {n: share for n, share in facts["scripts"].items() if n not in usual and share > 0.1}


def note_written(facts: Mapping[str, Any], tokenizer: Any, text: SelfText) -> None:
    """Note what `describe_written` found, and scripts that the chat template does not have."""
    note(
        f"the model wrote text such as: {facts['sample']} (letters: "
        f"{describe_shares(facts['scripts'])}; {facts['repeated']:.0%} of it repeats itself)"
    )
    rare = unusual_scripts(facts, tokenizer)
    if rare and not text.scripts:
        names = ",".join(name for name in _usual_scripts(tokenizer) if name != "other")
        note(
            f"of the letters that the model wrote, {describe_shares(rare)}: if the pruned model is "
            f"not for that, give --scripts {names}"
        )


def _usual_scripts(tokenizer: Any) -> dict[str, float]:
    return count_scripts(getattr(tokenizer, "chat_template", None) or "Latin")


# The most tokens and windows that are written together, as many as `prune` calibrates on by
# default. The drawn text depends on the number of windows in a batch, so that these numbers do not
# depend on --windows. Each window takes memory for a distribution over the vocabulary.
BATCH_TOKENS, BATCH_WINDOWS = 24 * 1024, 96
# Spare windows of a batch, as a share of its windows, take the place of windows of which more than
# the share REPEATED repeats itself, as long as there are any.
REPEATED, SPARE = 0.5, 1 / 8
# The share of dialogues that the token of a plain document stands before.
STARTED = 1 / 4
# Tokens of each document by which `self` decides between documents and dialogues.
GLANCE = 64
SELF_TEXT = SelfText()


def self_windows(
    language_model: LanguageModel,
    windows: int,
    seqlen: int,
    seed: int,
    *,
    text: SelfText = SELF_TEXT,
    first: int = 0,
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> Windows:
    """`windows` windows of `seqlen` tokens that `language_model` writes, from number `first` on.

    With the same seed, fewer windows are the first of more. They are written in batches, each with
    a generator of its own and kept under `folder` (default: the cache), so that an interrupted call
    continues after the last batch. A note shows what the text is like. An offloaded model is read
    to memory while it writes. text: what it writes; in `self` documents, or dialogues where its
    chat template is in other scripts than its documents. fingerprint: that of the model if it is
    known already. Raises PrunerZeroError where memory has no room for an offloaded model or a
    window for a prompt, where another process writes the same text, and as `documents_of`,
    `check_tokens` and `sample_windows` do.
    """
    fingerprint = fingerprint or language_model.fingerprint()
    write = partial(_write, language_model, seed=seed, folder=folder, fingerprint=fingerprint)
    tokenizer, variant = language_model.tokenizer, text
    if text.name == SELF and dialogue(language_model) is not None:
        variant = replace(text, name=SELF_DOCUMENTS)
        glance = write(windows=BATCH_WINDOWS, seqlen=min(GLANCE, seqlen), text=variant, first=0)
        if unusual_scripts(glance.written, tokenizer):
            variant = replace(text, name=SELF_CHAT)
    written = write(windows=windows, seqlen=seqlen, text=variant, first=first)
    note_written(written.written, tokenizer, variant)
    return replace(written, corpus=written.corpus.replace(variant.name, text.name))


def _write(
    language_model: LanguageModel,
    *,
    windows: int,
    seqlen: int,
    seed: int,
    text: SelfText,
    first: int,
    folder: str | Path | None,
    fingerprint: str,
) -> Windows:
    """The windows of `self_windows`, of exactly `text`."""
    documents, joined = documents_of(language_model, text)
    always = start_of(language_model.tokenizer)
    start, share = (always, 1.0) if always else (_unseen_start(language_model, documents), STARTED)
    ends = end_tokens(language_model).union(*(turn_ends(language_model, d) for d in documents))
    dtype = writing_dtype(language_model.model)
    largest = max(token for document in documents for piece in document for token in piece)
    check_tokens(language_model.model, torch.full((1, seqlen), largest))
    longest = max(sum(map(len, document)) for document in documents)
    if longest >= seqlen:
        other = "shorter prompts" if text.prompts else "--calibration self:documents"
        raise PrunerZeroError(
            f"windows of {seqlen} tokens have no room for text after {longest} tokens of the "
            f"prompt or the chat template: choose a larger --seqlen, or {other}"
        )
    settings = {
        "model": fingerprint,
        "seqlen": seqlen,
        "seed": seed,
        "documents": documents,
        "start": [*start, share] if start else None,
        "ends": sorted(ends),
        "scripts": text.scripts,
        "dtype": str(dtype),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "pruner_zero": __version__,
        # Counted up where what is kept changes between versions.
        "format": 7,
    }
    cache = Path(folder) if folder is not None else default_cache()
    size = max(1, min(BATCH_TOKENS // seqlen, BATCH_WINDOWS))
    batches = _Batches(cache / f"text-{cache_key(settings)}", size, seqlen, seed)
    numbers = range(first // size, -(-(first + windows) // size))
    read = {number: batches.read(number) for number in numbers}
    written = {number: tokens for number, tokens in read.items() if tokens is not None}
    missing = [number for number in numbers if number not in written]
    if missing and not language_model.fits(dtype):
        raise PrunerZeroError(
            "a model writes its own text in memory, and this machine has no room for it: give a "
            "text as --calibration, or let a larger machine write it (--cache keeps it)"
        )
    tokenizer = language_model.tokenizer
    banned = control_tokens(tokenizer) - ends
    if missing and text.scripts:
        banned |= set(tokens_outside(text.scripts, tokenizer).tolist())
    writes = filling(batches.folder) if missing else nullcontext()
    loaded = language_model.in_memory(dtype) if missing else nullcontext()
    with use(batches.folder, language_model.name), writes, loaded:
        for count, number in enumerate(missing, start=1):
            rows = range(size + int(size * SPARE))
            tokens = sample_windows(
                language_model.model,
                [_in_turn(documents, row, size, number) for row in rows],
                seqlen,
                batches.generator(number),
                ends=ends,
                banned=torch.tensor(sorted(banned), dtype=torch.int64),
                dtype=dtype,
                label=f"writing text {count}/{len(missing)}",
            )
            repetitive = repeated_shares(tokens, documents) > REPEATED
            tokens = tokens[repetitive.to(torch.int8).argsort(stable=True)[:size].sort().values]
            tokens = begun_anywhere(tokens, batches.generator(number), start, share)
            batches.write(number, tokens)
            written[number] = tokens
    tokens = torch.cat([written[number] for number in numbers])
    chosen = tokens[first - numbers.start * size :][:windows].clone()
    return Windows(
        chosen,
        text.name if not first else f"{text.name}, from window {first} on",
        None,
        joined,
        None,
        "sampled",
        seed,
        written=describe_written(chosen, documents, tokenizer),
        start=always,
    )


def begun_anywhere(
    tokens: Tensor, generator: torch.Generator, start: tuple[int, ...] = (), share: float = STARTED
) -> Tensor:
    """Windows (n, seqlen) of which about half begin in the middle: they are rotated.

    Models give the first token of a text, whatever it is, activations of a hundred times the size
    of others and attend to it where there is nothing to attend to (attention sinks, 2309.17453).
    Were it always the token that begins a document, a pruned model would keep that one alone.
    start: tokens that about `share` of the windows get before their first, unless they begin so,
    and whose last tokens go: the pruned model would lose them otherwise (benchmarks/why.md).
    """
    count, seqlen = tokens.shape
    starts = torch.randint(seqlen, (count, 1), generator=generator)
    starts *= torch.randint(2, (count, 1), generator=generator)
    tokens = tokens.gather(1, (starts + torch.arange(seqlen)) % seqlen)
    if not start:
        return tokens
    chosen = torch.rand(count, 1, generator=generator) < share
    chosen &= (tokens[:, : len(start)] != torch.tensor(start)).any(1, keepdim=True)
    return torch.where(chosen, begun(tokens[:, : seqlen - len(start)], start), tokens)


def _unseen_start(language_model: LanguageModel, documents: Sequence[Document]) -> tuple[int, ...]:
    """The token that begins a plain document, where none of `documents` begins with it."""
    try:
        start = start_token(language_model)
    except PrunerZeroError:
        # Dialogues need no such token.
        return ()
    return () if any(document[0][0] == start for document in documents) else (start,)


def _in_turn(documents: Sequence[Document], row: int, size: int, number: int) -> Iterator[Document]:
    """The documents of one window of a batch, again and again, from another one in each window."""
    start = row * max(1, len(documents) // size) + number
    return islice(cycle(documents), start % len(documents), None)


@dataclass(frozen=True)
class _Batches:
    """The batches (size, seqlen) of one model and seed, a file each in `folder`."""

    folder: Path
    size: int
    seqlen: int
    seed: int

    def generator(self, number: int) -> torch.Generator:
        """A generator for one batch."""
        state = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def write(self, number: int, tokens: Tensor) -> None:
        """Keep a batch. Raises PrunerZeroError where it cannot be written."""
        write_tensors(self._path(number), {"tokens": tokens}, {"sha256": tokens_sha256(tokens)})

    def read(self, number: int) -> Tensor | None:
        """A batch that was kept; None where there is none or it is damaged."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            file = TensorFile(path)
            tokens = file.read("tokens")
            intact = file.metadata["sha256"] == tokens_sha256(tokens)
        except (PrunerZeroError, KeyError):
            return None
        return tokens if intact and tokens.shape == (self.size, self.seqlen) else None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"
