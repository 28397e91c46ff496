"""Texts by name: their sources, and the roles that a text can have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


SOURCES = Registry[TextSource](
    "texts",
    TextSource,
    deferred={
        "builtin:pydoc": "pruner_zero.text.pydoc:PYDOC",
        "wikitext2": "pruner_zero.text.hub:WIKITEXT2",
        "c4": "pruner_zero.text.hub:C4",
        "ptb": "pruner_zero.text.hub:PTB",
    },
)
