"""Statistics of weight matrices: of inputs by forward, of gradients by backward, kept on disk."""

from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.gradients import check_gradients
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.calibration.statistics import (
    GradientStatistic,
    InputStatistic,
    Kind,
    MatrixStatistics,
    select,
)
from pruner_zero.calibration.store import StatisticsStore
from pruner_zero.calibration.walk import WindowFile
from pruner_zero.calibration.windows import take_windows

__all__ = [
    "GradientStatistic",
    "InputStatistic",
    "Kind",
    "MatrixStatistics",
    "StatisticsStore",
    "WindowFile",
    "calibrate",
    "check_gradients",
    "collect_inputs",
    "open_store",
    "select",
    "self_windows",
    "take_windows",
]
