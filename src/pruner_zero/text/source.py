"""Texts by name: their sources, and the roles that a text can have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from pruner_zero.plugins import Registry

Role = Literal["calibration", "search", "test"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class TextSource:
    """A text by name: `documents` gives the documents of a role, `separator` joins them.

    The documents of different roles must not overlap: metrics would be tested on the text of their
    search. whole: gives the documents of all roles, where they can be asked for as `NAME/all`.
    """

    name: str
    documents: Callable[[Role], Iterable[str]]
    separator: str = "\n\n"
    whole: Callable[[], Iterable[str]] | None = None


def _built_in(name: str) -> TextSource:
    # These modules import this one.
    from pruner_zero.text.hub import C4, PTB, WIKITEXT2
    from pruner_zero.text.pydoc import PYDOC

    return {source.name: source for source in (PYDOC, WIKITEXT2, C4, PTB)}[name]


SOURCES = Registry[TextSource](
    "texts",
    TextSource,
    deferred={
        name: partial(_built_in, name) for name in ("builtin:pydoc", "wikitext2", "c4", "ptb")
    },
)
