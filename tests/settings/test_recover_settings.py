"""Settings of a recovery: defaults that depend on each other are written out."""

import pytest

from pruner_zero.settings.read_settings import read_settings
from pruner_zero.settings.recover_settings import RecoverSettings
from tests.text.refusals import refusal

NAMES = {"model": "m", "text": "t"}


def test_ten_minutes_where_no_budget_is_given() -> None:
    assert RecoverSettings(**NAMES).minutes == 10
    assert RecoverSettings(**NAMES, steps=3).minutes is None
    both = RecoverSettings(**NAMES, steps=3, minutes=1)
    assert (both.steps, both.minutes) == (3, 1)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"text": "t"}, 0.5),
        ({}, 1),
        ({"text": ["self"]}, 1),
        ({"text": ["self=2"]}, 1),
        ({"text": {"self": 2.0}}, 1),
        ({"text": {"self": 2.0, "t": 1.0}}, 0.5),
    ],
)
def test_predictions_alone_are_learned_where_the_teacher_writes_the_text(
    options: dict[str, object], share: float
) -> None:
    given = {"model": "m", "teacher": "d", **options}
    assert read_settings(RecoverSettings, given).teacher_share == share


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"teacher": "d", "minutes": 2.0}])
def test_resolved_settings_read_back_as_themselves(options: dict[str, object]) -> None:
    settings = RecoverSettings(**NAMES, **options)
    assert RecoverSettings(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "--steps is 0"),
        ({"minutes": 0}, "--minutes is 0"),
        ({"rank": 8}, "no setting 'rank'"),
        ({"teacher_share": 1.5}, "'teacher_share' was an option of version 0.3 and is gone"),
        ({"learning_rate": -1}, "--learning-rate is -1"),
        ({"learn_rate": 1}, "no setting 'learn_rate': did you mean 'learning_rate'?"),
        ({"windows": 9}, "--windows has no effect without --text self: leave it out"),
        ({"text": 3}, "give a text, or several, each as TEXT or TEXT=SHARE"),
        ({"text": None}, "give one as --text, or the dense model as --teacher"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line(options: dict[str, object], words: str) -> None:
    assert words in refusal(lambda: read_settings(RecoverSettings, {**NAMES, **options}))
