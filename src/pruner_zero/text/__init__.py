"""Text: a corpus by name, file or strings, cut into token windows."""

from pruner_zero.text.corpus import NAMES, Corpus, load_corpus
from pruner_zero.text.role import ROLES, Role
from pruner_zero.text.source import TextSource
from pruner_zero.text.windows import (
    Tokenizer,
    Windows,
    consecutive_windows,
    no_windows,
    random_windows,
)

__all__ = [
    "NAMES",
    "ROLES",
    "Corpus",
    "Role",
    "TextSource",
    "Tokenizer",
    "Windows",
    "consecutive_windows",
    "load_corpus",
    "no_windows",
    "random_windows",
]
