"""What every verb can be told: one pydantic model a verb, from which its options are made.

Nothing here imports torch, so that `--help` and shell completion answer at once.
"""

from pruner_zero.settings.base import MAIN, Cli, Settings, read_settings
from pruner_zero.settings.model import ModelSettings
from pruner_zero.settings.options import Option, options_of
from pruner_zero.settings.recover import RecoverSettings

__all__ = [
    "MAIN",
    "Cli",
    "ModelSettings",
    "Option",
    "RecoverSettings",
    "Settings",
    "options_of",
    "read_settings",
]
