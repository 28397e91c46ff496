"""The search for better metrics: space, variation, algorithms, rungs, archive, hall of fame."""

from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.evolution.run import Status, search
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.study import Candidates, Study
from pruner_zero.settings.search import SearchSettings

__all__ = [
    "Candidates",
    "HallOfFame",
    "Record",
    "SearchSettings",
    "SearchSpace",
    "Status",
    "Study",
    "search",
]
