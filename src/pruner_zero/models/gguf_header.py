"""The header of a GGUF file: its metadata, and where its tensors are.

The package gguf reads it token by token into NumPy arrays, which takes seconds.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from gguf import GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from pruner_zero.errors import PrunerZeroError, one_line

# The value of a key, its type, and the type of the items where it is an array.
Field = tuple[Any, GGUFValueType, GGUFValueType | None]

TOKENS = "tokenizer.ggml.tokens"
_NAMED = {f"tokenizer.ggml.{token}_token_id" for token in ("bos", "eos", "unknown")}
_VERSIONS = (2, 3)
_MOST_ITEMS = 1 << 24
# The codes of `struct` for the types of numbers.
_CODES = dict(zip(map(GGUFValueType, (*range(8), *range(10, 13))), "BbHhIif?QqD", strict=True))


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: its shape, rows first as in PyTorch, and its first byte."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """The metadata by key and the tensors by name, in the order of the file."""

    fields: Mapping[str, Field]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The name of the family in the file's keys."""
        return str(self.fields["general.architecture"][0])


def read_header(path: Path, name: str) -> GgufHeader:
    """The header of the GGUF file `path`, of the model known as `name`.

    Raises PrunerZeroError where the file is not a whole GGUF file, or has tensors of fewer or more
    blocks than it says, or fewer tokens than a number that names one.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            header = _Cursor(data).header()
        _check_counts(header)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise PrunerZeroError(
            f"{name} is not a GGUF file, or a damaged one ({one_line(error)}): fetch or make it "
            "again"
        ) from error
    return header


def _check_counts(header: GgufHeader) -> None:
    """Raise ValueError for numbers that transformers would take on trust."""
    matches = [re.search(r"\bblk\.(\d+)\.", name) for name in header.tensors]
    blocks = max((int(match[1]) + 1 for match in matches if match), default=0)
    tokens = len(header.fields.get(TOKENS, ([],))[0])
    described = f"{header.architecture}.block_count"
    for key, (value, *_) in header.fields.items():
        if key == described and value != blocks:
            raise ValueError(f"{key} is {value}, and it has tensors of {blocks} blocks")
        if key in _NAMED and value >= tokens:
            raise ValueError(f"{key} is {value}, and it has {tokens} tokens")


class _Cursor:
    """Reads the bytes of a file in turn."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._at = 0

    def header(self) -> GgufHeader:
        """All up to the data of the tensors."""
        magic, version, tensors, fields = self._numbers("IIQQ")
        if magic != GGUF_MAGIC or version not in _VERSIONS:
            raise ValueError("it does not begin as version 2 or 3 of the format does")
        metadata = {self._text(): self._field() for _ in range(fields)}
        infos = {self._text(): self._numbers(f"{self._numbers('I')[0]}QIQ") for _ in range(tensors)}
        alignment = metadata.get("general.alignment", (GGUF_DEFAULT_ALIGNMENT,))[0]
        start = -(-self._at // alignment) * alignment
        places = {
            name: GgufTensor(tuple(reversed(shape)), GGMLQuantizationType(kind), start + offset)
            for name, (*shape, kind, offset) in infos.items()
        }
        return GgufHeader(metadata, places)

    def _field(self) -> Field:
        (kind,) = map(GGUFValueType, self._numbers("I"))
        if kind != GGUFValueType.ARRAY:
            return (*self._values(kind, 1), kind, None)
        number, count = self._numbers("IQ")
        items = GGUFValueType(number)
        if count > _MOST_ITEMS:
            raise ValueError(f"an array of {count} items")
        return self._values(items, count), kind, items

    def _values(self, kind: GGUFValueType, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            return [self._text() for _ in range(count)]
        return list(self._numbers(f"{count}{_CODES[kind]}"))

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        (text,) = self._numbers(f"{length}s")
        return str(text, "utf-8")

    def _numbers(self, codes: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(f"<{codes}", self._data, self._at)
        except struct.error as error:
            raise ValueError(f"it has no room for what its byte {self._at} begins") from error
        self._at += struct.calcsize(f"<{codes}")
        return values
