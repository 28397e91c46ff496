"""The search for better metrics: space, variation, evolution, rungs, archive, analysis."""

from pruner_zero.search.analysis import Analysis, analyze
from pruner_zero.search.archive import Record, read_records
from pruner_zero.search.hall_of_fame import HallOfFame
from pruner_zero.search.search import SearchResult, Status, search
from pruner_zero.search.settings import SearchSettings
from pruner_zero.search.space import SearchSpace

__all__ = [
    "Analysis",
    "HallOfFame",
    "Record",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Status",
    "analyze",
    "read_records",
    "search",
]
