"""The texts of the windows: one, or several with shares; `self` is text of the model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pruner_zero.choices import SELF, SELF_CHAT, SELF_DOCUMENTS, is_written
from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.prompts import Prompt, read_prompts
from pruner_zero.text.scripts import read_scripts
from pruner_zero.text.source import Role

Source = str | Path | Corpus | Iterable[str]


@dataclass(frozen=True)
class SelfText:
    """Text that a dense model writes itself: there is none before the model is loaded.

    name: as in `is_written`. prompts: what it answers, those of the file in `self:FILE`; without
    them it writes dialogues by its chat template, as in `self:chat`, or documents, as in
    `self:documents`. scripts: those that it writes in; empty for all.
    """

    name: str = SELF
    prompts: tuple[Prompt, ...] = ()
    scripts: tuple[str, ...] = ()


Text = Corpus | SelfText


@dataclass(frozen=True)
class Mixture:
    """Texts, and the share of the windows that each gives: positive numbers of any sum."""

    texts: tuple[Text, ...]
    shares: tuple[float, ...]

    def divide(self, windows: int, option: str | None = "--windows") -> list[int]:
        """How many of `windows` windows each text gives, by the largest remainder.

        Where remainders are equal, the earlier text gives one more. Raises PrunerZeroError where a
        text would give none, naming the `option` that sets the number of windows, if one does.
        """
        total = sum(map(Fraction, self.shares))
        quotas = [windows * Fraction(share) / total for share in self.shares]
        counts = [int(quota) for quota in quotas]
        remainders = [count - quota for count, quota in zip(counts, quotas, strict=True)]
        by_remainder = sorted(range(len(counts)), key=remainders.__getitem__)
        for index in by_remainder[: windows - sum(counts)]:
            counts[index] += 1
        for text, count in zip(self.texts, counts, strict=True):
            if not count:
                more = f"a larger {option} or " if option else ""
                raise PrunerZeroError(
                    f"{text.name} gets none of {windows} windows: choose {more}a larger share for "
                    "it"
                )
        return counts

    def count_self(self, windows: int) -> int:
        """How many of `windows` windows the model writes itself."""
        counts = zip(self.texts, self.divide(windows), strict=True)
        return sum(count for text, count in counts if isinstance(text, SelfText))

    def halves(self, other: "Mixture") -> tuple["Mixture", "Mixture"]:
        """Both mixtures; of a corpus in both, this one has the first half, `other` the second."""
        shared = self.hashes() & other.hashes()
        return self._halved(shared, 0), other._halved(shared, 1)

    def hashes(self) -> set[str]:
        """The SHA-256 of each text that is known before the model is loaded."""
        return {text.sha256 for text in self.texts if isinstance(text, Corpus)}

    def _halved(self, hashes: set[str], half: int) -> "Mixture":
        def part(text: Text) -> Text:
            if isinstance(text, SelfText) or text.sha256 not in hashes:
                return text
            middle = len(text.text) // 2
            return replace(text, text=text.text[middle:] if half else text.text[:middle])

        return replace(self, texts=tuple(map(part, self.texts)))


def load_text(
    source: Source,
    role: Role = "calibration",
    *,
    scripts: str | None = None,
) -> Text:
    """Load what `load_corpus` takes, or a text that a model writes, as in `is_written`.

    scripts: those that the model writes in, with commas between them. Raises PrunerZeroError as
    `load_corpus`, `read_prompts` and `read_scripts` do.
    """
    if not isinstance(source, str) or not is_written(source):
        return load_corpus(source, role)
    named = source in (SELF, SELF_CHAT, SELF_DOCUMENTS)
    return SelfText(
        source,
        () if named else read_prompts(source.removeprefix(f"{SELF}:")),
        () if scripts is None else read_scripts(scripts),
    )


def load_mixture(
    source: Source | Mapping[Any, float],
    role: Role = "calibration",
    *,
    scripts: str | None = None,
) -> Mixture:
    """Load one text, or those of a mapping from texts to shares, as `load_text` does."""
    shares = source if isinstance(source, Mapping) else {}
    sources = shares if isinstance(source, Mapping) else [source]
    texts = (load_text(text, role, scripts=scripts) for text in sources)
    return Mixture(tuple(texts), tuple(shares.values()) or (1.0,))
