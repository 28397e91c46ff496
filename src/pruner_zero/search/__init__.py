"""The search for better metrics: space, variation, evolution, rungs, archive."""

import sys
from types import ModuleType
from typing import Any

from pruner_zero.search.archive import Record, read_records
from pruner_zero.search.hall_of_fame import HallOfFame
from pruner_zero.search.search import SearchResult, Status, search
from pruner_zero.search.settings import SearchSettings
from pruner_zero.search.space import SearchSpace

__all__ = [
    "HallOfFame",
    "Record",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Status",
    "read_records",
    "search",
]


class _Callable(ModuleType):
    """`pruner_zero.search` names a room and a function; importing the room hides the function."""

    def __call__(self, *arguments: Any, **settings: Any) -> SearchResult:
        return search(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable
