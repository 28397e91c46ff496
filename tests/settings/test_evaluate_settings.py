"""Settings of `evaluate` without effect are refused by name."""

from typing import Any

import pytest

from pruner_zero.settings.evaluate_settings import EvaluateSettings
from pruner_zero.settings.read_settings import read_settings
from tests.text.refusals import refusal


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"text": "t", "limit": 3}, "--limit has no effect without --tasks: leave it out"),
        ({"text": "t", "num_fewshot": 2}, "--num-fewshot has no effect without --tasks"),
        ({"speed": True, "apply_chat_template": True}, "--apply-chat-template has no effect"),
        ({"tasks": "a", "windows": 2}, "--windows has no effect without --text"),
        ({"speed": True, "batch_size": 9}, "--batch-size has no effect without --text or --tasks"),
    ],
    ids=str,
)
def test_settings_without_effect_are_refused(given: dict[str, Any], line: str) -> None:
    assert line in refusal(lambda: read_settings(EvaluateSettings, {"model": "m", **given}))


def test_settings_with_effect_are_taken() -> None:
    given = {"model": "m", "text": "t", "tasks": "a", "windows": 2, "limit": 3, "batch_size": 4}
    assert read_settings(EvaluateSettings, given).limit == 3
