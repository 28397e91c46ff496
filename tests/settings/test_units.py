"""The parameters to leave of a model, as a number or a share."""

import pytest

from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.read import read_settings
from pruner_zero.settings.units import read_parameters
from tests.text.refusals import refusal


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.75", 0.75),
        (".5", 0.5),
        ("1", 1),
        ("134515008", 134_515_008),
        ("100_000", 100_000),
        ("100M", 100_000_000),
        ("1.2B", 1_200_000_000),
        (" 500 k ", 500_000),
        ("1e8", 100_000_000),
    ],
)
def test_numbers_and_shares(text: str, number: float) -> None:
    assert read_parameters(text) == number


@pytest.mark.parametrize(
    "text", ["", "most", "0", "0M", "-1", "75%", "1.2.3M", "nan", "inf", "1e999"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a share such as 0\.75, or a number such as 100M"):
        read_parameters(text)


def test_a_multiple_is_refused_where_no_units_go() -> None:
    given = {"model": "m", "metric": "wanda", "sparsity": 0.5, "multiple_of": 7}
    line = refusal(lambda: read_settings(PruneSettings, given))
    assert line == "--multiple-of has no effect without --structure channels: leave it out"
    line = refusal(lambda: read_settings(PruneSettings, {**given, "structure": "heads"}))
    assert line == "--multiple-of has no effect without --structure channels: leave it out"
    assert read_settings(PruneSettings, {**given, "structure": "channels"}).multiple_of == 7
