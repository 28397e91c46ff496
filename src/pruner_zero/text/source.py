"""The roles of texts, and the texts that plug-ins add, by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pruner_zero.plugins import Registry

Role = Literal["calibration", "search", "test"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class TextSource:
    """A text of a plug-in: `documents` gives the documents of a role, `separator` joins them.

    The documents of different roles must not overlap: metrics would be tested on the text of their
    search.
    """

    name: str
    documents: Callable[[Role], Iterable[str]]
    separator: str = "\n\n"


SOURCES = Registry[TextSource]("texts", TextSource, {})
