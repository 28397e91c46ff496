"""Text: a corpus by name, file or strings, cut into token windows."""

from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.mixture import Mixture, SelfText, Source, Text, load_mixture, load_text
from pruner_zero.text.role import ROLES, Role
from pruner_zero.text.source import TextSource
from pruner_zero.text.windows import (
    Tokenizer,
    Windows,
    consecutive_windows,
    mix_windows,
    no_windows,
    random_windows,
    tokens_sha256,
)

__all__ = [
    "ROLES",
    "Corpus",
    "Mixture",
    "Role",
    "SelfText",
    "Source",
    "Text",
    "TextSource",
    "Tokenizer",
    "Windows",
    "consecutive_windows",
    "load_corpus",
    "load_mixture",
    "load_text",
    "mix_windows",
    "no_windows",
    "random_windows",
    "tokens_sha256",
]
