"""Token windows of equal length, cut from a corpus."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.corpus import Corpus

# Random windows are drawn from this many characters at the beginning of a corpus: more than all
# of WikiText-2's training text, and under half a minute of tokenizing for a huge corpus.
RANDOM_CHARACTERS = 2**24


# A tokenizer of transformers.
Tokenizer = Any


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one corpus: `tokens` int64 (n, seqlen), and where they come from.

    available: tokens of the stream they were cut from; it and `text_sha256` are None for windows
    that a model wrote (sampled) or that are of several `sources` (mixed). seed: None for
    consecutive windows. written: what text that a model wrote is like. text_bytes: bytes of UTF-8
    text behind the tokens of consecutive windows that a model predicts; None where the tokenizer
    does not tell. start: what every window begins with, by `start_of`. stream: the tokens that
    random windows were cut from.
    """

    tokens: torch.Tensor
    corpus: str
    text_sha256: str | None
    joined: str
    available: int | None
    selection: Literal["random", "consecutive", "sampled", "mixed"]
    seed: int | None = None
    sources: "tuple[Windows, ...]" = ()
    written: Mapping[str, Any] = field(default_factory=dict)
    text_bytes: int | None = None
    start: tuple[int, ...] = ()
    stream: torch.Tensor | None = field(default=None, repr=False)

    @property
    def seqlen(self) -> int:
        """Tokens in each window."""
        return self.tokens.shape[1]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the tokens, by `tokens_sha256`."""
        return tokens_sha256(self.tokens)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def streams(self) -> list[tuple[float, torch.Tensor]]:
        """The text behind the windows: for each source its share of them, and all its tokens.

        Of text that a model wrote there is no more than the windows.
        """
        if not self.sources:
            return [(1.0, self.tokens.flatten() if self.stream is None else self.stream)]
        windows = sum(map(len, self.sources))
        return [
            (len(source) / windows * share, stream)
            for source in self.sources
            for share, stream in source.streams()
        ]

    def describe(self) -> dict[str, Any]:
        """The provenance of the windows, ready for JSON."""
        described: dict[str, Any] = {
            "text": self.corpus,
            "text_sha256": self.text_sha256,
            "joined": self.joined,
            "selection": self.selection,
            "seed": self.seed,
            "windows": len(self),
            "seqlen": self.seqlen,
            "tokens": self.tokens.numel(),
            "tokens_available": self.available,
            "tokens_sha256": self.sha256,
            **self.written,
        }
        if self.text_bytes is not None:
            described["text_bytes"] = self.text_bytes
        if self.sources:
            described["sources"] = [source.describe() for source in self.sources]
        return described


def no_windows() -> Windows:
    """An empty set of windows, for methods that look at no text."""
    return Windows(torch.empty(0, 0, dtype=torch.int64), "none", "", "none", 0, "random")


def start_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special tokens that `tokenizer` puts before a text, such as BOS; none for many.

    A model that was trained on texts with BOS needs it: without it the perplexity of Gemma 3 270M
    is 1.8 times as high (benchmarks/proof.md).
    """
    bare, whole = (
        tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"]
        for special in (False, True)
    )
    count = len(whole) - len(bare)
    return tuple(whole[: next(n for n in range(count + 1) if whole[n : n + len(bare)] == bare)])


def random_windows(
    corpus: Corpus,
    tokenizer: Tokenizer,
    windows: int,
    seqlen: int,
    seed: int,
    *,
    apart: bool = False,
) -> Windows:
    """`windows` windows at distinct random offsets of the token stream.

    They may overlap, as in the papers' calibration, unless they are `apart`: then offsets are
    multiples of a window's length. With the same seed, fewer windows are the first of more. Only
    the first RANDOM_CHARACTERS characters of the corpus are tokenized. Raises PrunerZeroError where
    the corpus has too few tokens.
    """
    if not 0 <= seed < 2**63:
        raise PrunerZeroError(f"--seed is {seed}: choose one from 0 to 2**63 - 1")
    text = corpus.text[:RANDOM_CHARACTERS]
    start, stream, _ = _encode(corpus, text, tokenizer, windows, seqlen)
    length = seqlen - len(start)
    step = length if apart else 1
    offsets = (len(stream) - length) // step + 1
    if windows > offsets:
        option = "--search-windows, --final-windows" if apart else "--windows"
        raise _too_few(corpus, len(stream), offsets, windows, seqlen, f"{option} or --seqlen")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randperm(offsets, generator=generator)[:windows] * step
    tokens = begun(stream[starts[:, None] + torch.arange(length)], start)
    origin = _origin(corpus, start, tokenizer, stream)
    return Windows(tokens, *origin, "random", seed, start=start, stream=stream)


def consecutive_windows(
    corpus: Corpus,
    tokenizer: Tokenizer,
    seqlen: int,
    windows: int | None = None,
    suffix: str = "",
) -> Windows:
    """The first `windows` non-overlapping windows, all of them where None; the rest is dropped.

    Used for perplexity, as in the papers. suffix: of the options --windows and --seqlen, in
    messages. Raises PrunerZeroError where the corpus has too few tokens.
    """
    fast = getattr(tokenizer, "is_fast", False)
    asked = {"return_offsets_mapping": fast}
    start, stream, coded = _encode(corpus, corpus.text, tokenizer, windows, seqlen, suffix, **asked)
    length = seqlen - len(start)
    whole = len(stream) // length
    windows = whole if windows is None else windows
    if windows > whole:
        options = f"--windows{suffix} or --seqlen"
        raise _too_few(corpus, len(stream), whole, windows, seqlen, options)
    tokens = begun(stream[: windows * length].reshape(windows, length), start)
    count = None
    if fast:
        # Where tokens end: some tokenizers count the space before a word to neither word.
        ends = [0, *(end for _, end in coded["offset_mapping"][: windows * length])]
        # Without a start, the first token of a window is not predicted.
        firsts = ends[not start :: length][:windows]
        spans = zip(firsts, ends[length::length], strict=True)
        count = sum(len(corpus.text[first:last].encode()) for first, last in spans)
    origin = _origin(corpus, start, tokenizer, stream)
    return Windows(tokens, *origin, "consecutive", text_bytes=count, start=start)


def begun(pieces: torch.Tensor, start: tuple[int, ...]) -> torch.Tensor:
    """A copy of `pieces` (n, length) with the tokens `start` before each."""
    return torch.cat([torch.tensor(start, dtype=torch.int64).expand(len(pieces), -1), pieces], 1)


def mix_windows(sources: Sequence[Windows]) -> Windows:
    """The windows of all `sources`, or the only source itself.

    They are ordered so that every prefix has about the same shares as the whole.
    """
    if len(sources) == 1:
        return sources[0]
    fractions = [(torch.arange(len(source)) + 0.5) / len(source) for source in sources]
    order = torch.cat(fractions).argsort(stable=True)
    tokens = torch.cat([source.tokens for source in sources])[order]
    names = " + ".join(source.corpus for source in sources)
    joined = "windows of the sources in turn"
    return Windows(
        tokens, names, None, joined, None, "mixed", sources[0].seed, sources=tuple(sources)
    )


def tokens_sha256(tokens: torch.Tensor) -> str:
    """The SHA-256 of `tokens` as little-endian int64, row by row."""
    return hashlib.sha256(tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _origin(
    corpus: Corpus, start: tuple[int, ...], tokenizer: Tokenizer, stream: torch.Tensor
) -> tuple[str, str, str, int]:
    """Name, hash, joining and number of tokens of a corpus whose windows begin with `start`."""
    first = f", {tokenizer.decode(start)} first" if start else ""
    return corpus.name, corpus.sha256, corpus.joined + first, len(stream)


def _encode(
    corpus: Corpus,
    text: str,
    tokenizer: Tokenizer,
    windows: int | None,
    seqlen: int,
    suffix: str = "",
    **asked: bool,
) -> tuple[tuple[int, ...], torch.Tensor, Mapping[str, Any]]:
    """What every window begins with, the tokens of `text`, and all that the tokenizer gives."""
    start = start_of(tokenizer)
    if windows is not None and windows < 1:
        raise PrunerZeroError(f"--windows is {windows}: choose at least 1")
    if seqlen < (least := max(2, len(start) + 1)):
        raise PrunerZeroError(
            f"--seqlen is {seqlen}: choose at least {least}, a token and the next one to predict"
        )
    # verbose=False suppresses the warning about a text longer than the model's context, which every
    # corpus is.
    coded = tokenizer(text, add_special_tokens=False, verbose=False, **asked)
    if (count := len(coded["input_ids"])) < seqlen - len(start):
        raise PrunerZeroError(
            f"corpus {corpus.name} has {count} tokens, fewer than one window of {seqlen}: "
            f"choose a longer text or a smaller --seqlen"
        )
    return start, torch.tensor(coded["input_ids"], dtype=torch.int64), coded


def _too_few(
    corpus: Corpus, tokens: int, most: int, windows: int, seqlen: int, options: str
) -> PrunerZeroError:
    return PrunerZeroError(
        f"corpus {corpus.name} has {tokens} tokens, which hold {most} windows of {seqlen} and "
        f"not {windows}: choose a longer text, or a smaller {options}"
    )
