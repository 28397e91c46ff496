"""Settings of `prune`: what is taken where no metric or no text is named."""

from typing import Any

import pytest

from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.read import read_settings


def settings(**given: Any) -> PruneSettings:
    return read_settings(PruneSettings, {"model": "m", "sparsity": 0.5, **given})


def test_windows_are_short_where_a_model_writes_texts_of_several_kinds() -> None:
    both = {"self:chat": 1.0, "self:documents": 1.0}
    chosen = read_settings(PruneSettings, {"model": "m", "calibration": both})
    assert (chosen.calibration, chosen.windows, chosen.seqlen) == (both, 192, 256)


@pytest.mark.parametrize("texts", ["self", ["self"], ["self=1"], {"self": 1.0}], ids=str)
def test_text_that_the_model_writes_has_its_windows_however_it_is_given(texts: Any) -> None:
    chosen = settings(calibration=texts)
    assert (chosen.calibration, chosen.windows, chosen.seqlen) == ("self", 192, 256)


def test_the_default_metric_by_its_name_is_a_metric_that_is_named() -> None:
    chosen = settings()
    again = read_settings(PruneSettings, chosen.model_dump(mode="json"))
    assert again == chosen
    assert (chosen.is_default, again.is_default) == (True, False)
