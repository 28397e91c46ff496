"""The scripts, such as Latin or Han, in which a text is written."""

from collections.abc import Collection, Mapping
from typing import Any

import regex
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError

# Those that are counted; letters of other scripts are counted together.
COUNTED = (
    *("Latin", "Han", "Cyrillic", "Arabic", "Hangul", "Hiragana", "Katakana", "Devanagari"),
    *("Greek", "Hebrew", "Thai", "Bengali", "Tamil", "Telugu", "Armenian", "Georgian"),
)
# What stands for bytes that are no whole character.
_PARTIAL = "\ufffd"


def read_scripts(names: str) -> tuple[str, ...]:
    """The scripts of a list with commas, such as "Latin,Greek", by their Unicode names.

    Raises PrunerZeroError for a name that Unicode does not have.
    """
    scripts = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in scripts:
        try:
            regex.compile(_class_of(name))
        except regex.error:
            raise PrunerZeroError(
                f"--scripts: Unicode has no script '{name}': give names such as Latin,Cyrillic"
            ) from None
    if not scripts:
        raise PrunerZeroError("--scripts is empty: give names such as Latin,Cyrillic")
    return scripts


def count_scripts(text: str) -> dict[str, float]:
    """The share of each script among the letters of `text`, the largest first; "other" is last."""
    letters = len(regex.findall(r"\p{L}", text))
    counts = {name: len(regex.findall(rf"(?=\p{{L}}){_class_of(name)}", text)) for name in COUNTED}
    found = sorted(filter(counts.get, counts), key=lambda name: -counts[name])
    shares = {name: counts[name] / letters for name in found}
    rest = letters - sum(counts.values())
    return {**shares, "other": rest / letters} if rest else shares


def tokens_outside(scripts: Collection[str], tokenizer: Any) -> Tensor:
    """The tokens (n,) int64 with a character of none of `scripts`.

    Digits, spaces and signs, which Unicode calls Common, and special tokens belong to all scripts.
    Tokens that are a part of a character count as outside where Latin is the only script. Raises
    PrunerZeroError where no token has a character of `scripts`.
    """
    outside = regex.compile(rf"[^{_class_of(*scripts, 'Common', 'Inherited')}]")
    partial = set(scripts) <= {"Latin", "Common", "Inherited"}
    texts = _texts_of(tokenizer, scripts).items()
    chosen = [n for n, text in texts if outside.search(text) or (partial and _PARTIAL in text)]
    return torch.tensor(chosen, dtype=torch.int64)


def characters_of(scripts: Collection[str], tokenizer: Any) -> list[int]:
    """The tokens that are one character of `scripts`; raises as `tokens_outside` does."""
    inside = regex.compile(f"[{_class_of(*scripts)}]")
    return [n for n, text in _texts_of(tokenizer, scripts).items() if inside.fullmatch(text)]


def _texts_of(tokenizer: Any, scripts: Collection[str]) -> dict[int, str]:
    """The texts of all tokens that are not special ones."""
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    tokens = [token for token in range(len(tokenizer)) if token not in special]
    texts = tokenizer.batch_decode([[token] for token in tokens])
    inside = regex.compile(f"[{_class_of(*scripts)}]")
    if not any(map(inside.search, texts)):
        raise PrunerZeroError(
            f"--scripts {','.join(scripts)}: no token of the model has a character of these "
            "scripts, and it could write signs alone: name scripts that the model knows"
        )
    return dict(zip(tokens, texts, strict=True))


def describe_shares(shares: Mapping[str, float]) -> str:
    """Shares of at least one percent, such as "Latin 97 %, Han 3 %"."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.01)


def _class_of(*scripts: str) -> str:
    return "".join(rf"\p{{Script={script}}}" for script in scripts)
