"""A corpus: one text with its name and hash, from a name, a file or strings."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pruner_zero.choices import is_written
from pruner_zero.errors import PrunerZeroError, did_you_mean
from pruner_zero.text.documents import STREAMS, SUFFIXES, read_jsonl, read_parquet, read_stream
from pruner_zero.text.hub import HUB_TEXTS
from pruner_zero.text.pydoc import PYDOC
from pruner_zero.text.source import ROLES, Role

BLANK_LINE = "\n\n"
SOURCES = {source.name: source for source in (PYDOC, *HUB_TEXTS)}


@dataclass(frozen=True)
class Corpus:
    """A text to cut windows from.

    joined: how its documents became one stream. sha256: that of the UTF-8 text. Raises
    PrunerZeroError where the text is blank or holds half a surrogate pair, which no tokenizer
    can read.
    """

    name: str
    text: str = field(repr=False)
    joined: str = "one stream as it stands"
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.text or self.text.isspace():
            raise PrunerZeroError(f"corpus {self.name} is empty: choose a text with words in it")
        try:
            data = self.text.encode()
        except UnicodeEncodeError as error:
            raise PrunerZeroError(
                f"corpus {self.name} holds half a surrogate pair at character {error.start}: "
                "remove it"
            ) from error
        object.__setattr__(self, "sha256", hashlib.sha256(data).hexdigest())


def load_corpus(source: str | Path | Iterable[str] | Corpus, role: Role = "calibration") -> Corpus:
    """Load the corpus `source`.

    - `builtin:pydoc`, `wikitext2`, `c4` or `ptb`: the part for `role`, or the part named after a
      slash (`wikitext2/test`, `builtin:pydoc/all`). A file of the same name needs `./`.
    - a `.txt`, `.raw` or `.md` file: its text as it stands.
    - a `.jsonl` or `.parquet` file: the strings under `text`, joined by a blank line.
    - strings: joined by a blank line.
    - a Corpus: itself.

    Files, strings and a Corpus are used whole, whatever the role. Raises PrunerZeroError for
    anything that cannot be read.
    """
    if role not in ROLES:
        raise PrunerZeroError(f"unknown role '{role}': {did_you_mean(role, ROLES)}")
    if isinstance(source, Corpus):
        return source
    if isinstance(source, str):
        if is_written(source):
            raise PrunerZeroError(
                f"{source} is text that a dense model writes, for --calibration: give another text "
                "here"
            )
        name, _, part = source.partition("/")
        if name in SOURCES:
            return _load_named(name, part or role)
        if name.startswith("builtin:"):
            raise PrunerZeroError(f"unknown corpus '{name}': {did_you_mean(name, SOURCES)}")
    if isinstance(source, str | Path):
        return _load_file(Path(source))
    if not isinstance(source, Iterable):
        raise PrunerZeroError(
            f"a corpus is a name, a file or strings, not {type(source).__name__}: pass one of them"
        )
    return _join("strings", _strings(source), BLANK_LINE)


def _load_named(name: str, part: str) -> Corpus:
    source = SOURCES[name]
    parts = (*ROLES, *(["all"] if source.whole else []))
    if part not in parts:
        raise PrunerZeroError(f"{name} has no part '{part}': {did_you_mean(part, parts)}")
    whole = source.whole if part == "all" else None
    documents = whole() if whole else source.documents(cast(Role, part))
    return _join(f"{name}/{part}", _strings(documents), source.separator)


def _load_file(path: Path) -> Corpus:
    # Where a whole text is passed as a name, Path.exists raises and os.path.exists is False.
    if not os.path.exists(path):
        shown = str(path)[:200]
        raise PrunerZeroError(
            f"there is no file {shown!r} and no corpus of that name: {did_you_mean(shown, SOURCES)}"
        )
    if path.is_dir():
        raise PrunerZeroError(f"{path} is a folder: name one file in it")
    if not path.is_file():
        # A pipe would be waited for without end, and can be read but once.
        raise PrunerZeroError(f"{path} is not a regular file: save its text in one")
    suffix = path.suffix.lower()
    if suffix in STREAMS:
        return Corpus(str(path), read_stream(path))
    if suffix in (".jsonl", ".parquet"):
        documents = (read_jsonl if suffix == ".jsonl" else read_parquet)(path)
        return _join(str(path), documents, BLANK_LINE)
    raise PrunerZeroError(
        f"{path} has the unknown suffix {suffix!r}: convert it to one of {', '.join(SUFFIXES)}"
    )


def _strings(source: Iterable[object]) -> list[str]:
    documents = []
    for index, document in enumerate(source):
        if not isinstance(document, str):
            raise PrunerZeroError(
                f"document {index} is {type(document).__name__}, not a string: pass strings"
            )
        documents.append(document)
    return documents


def _join(name: str, documents: list[str], separator: str) -> Corpus:
    joined = f"{len(documents)} documents joined by {separator!r}"
    return Corpus(name, separator.join(documents), joined)
