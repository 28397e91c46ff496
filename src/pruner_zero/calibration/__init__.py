"""Statistics of weight matrices: X and XᵀX by forward, G by backward, kept on disk."""

from pruner_zero.cache import default_cache
from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.input_sums import InputStatistics
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.offloaded_gradients import store_gradients
from pruner_zero.calibration.store import Kind, StatisticsStore
from pruner_zero.calibration.window_file import WindowFile

__all__ = [
    "InputStatistics",
    "Kind",
    "StatisticsStore",
    "WindowFile",
    "calibrate",
    "collect_gradients",
    "collect_inputs",
    "default_cache",
    "open_store",
    "store_gradients",
]
