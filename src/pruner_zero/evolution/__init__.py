"""The search for better metrics: space, variation, algorithms, rungs, archive, hall of fame."""

from pruner_zero.evolution.archive import Record, read_records
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.evolution.run import SearchResult, Status, search
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.evolution.space import SearchSpace

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
