"""The roles that a text can have, and texts by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["calibration", "search", "test"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class TextSource:
    """A text by name: `documents` gives the documents of a role, `separator` joins them.

    The documents of different roles do not overlap: metrics would be tested on the text of their
    search. whole: gives the documents of all roles, where they can be asked for as `NAME/all`.
    """

    name: str
    documents: Callable[[Role], Iterable[str]]
    separator: str = "\n\n"
    whole: Callable[[], Iterable[str]] | None = None
