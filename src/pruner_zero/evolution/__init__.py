"""The search for better metrics: space, variation, algorithms, rungs, archive, hall of fame."""

from pruner_zero.evolution.archive import Record, SearchJournal
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.evolution.run import SearchResult, Status, search
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.evolution.space import SearchSpace

__all__ = [
    "HallOfFame",
    "Record",
    "SearchJournal",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Status",
    "search",
]
