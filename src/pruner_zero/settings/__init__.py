"""The settings of every command: one pydantic model each, from which its options are made.

Nothing here imports torch, so that `--help` and shell completion answer at once.
"""

from pruner_zero.settings.base import (
    STRINGS,
    Settings,
    name_of,
    names_of,
    quoted,
    read_settings,
)
from pruner_zero.settings.calibration import CalibrationSettings, SparsitySettings
from pruner_zero.settings.compare import CLASSICS, CompareSettings
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.settings.model import ModelSettings
from pruner_zero.settings.options import Option, options_of
from pruner_zero.settings.prune import (
    BLOCK_INFLUENCE,
    REAP,
    PruneSettings,
    default_beside,
)
from pruner_zero.settings.recover import RecoverSettings
from pruner_zero.settings.search import SearchOptions
from pruner_zero.settings.units import SizeSettings, check_structure, read_parameters

__all__ = [
    "BLOCK_INFLUENCE",
    "CLASSICS",
    "REAP",
    "STRINGS",
    "CalibrationSettings",
    "CompareSettings",
    "EvaluateSettings",
    "ModelSettings",
    "Option",
    "PruneSettings",
    "RecoverSettings",
    "SearchOptions",
    "Settings",
    "SizeSettings",
    "SparsitySettings",
    "check_structure",
    "default_beside",
    "name_of",
    "names_of",
    "options_of",
    "quoted",
    "read_parameters",
    "read_settings",
]
