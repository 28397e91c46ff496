"""Settings of `prune`: what a call says, before a model is known."""

from typing import Any

import pytest

from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.read_settings import read_settings


def settings(**given: Any) -> PruneSettings:
    return read_settings(PruneSettings, {"model": "m", "sparsity": 0.5, **given})


def test_what_is_left_to_the_model_has_no_value() -> None:
    chosen = settings()
    open_ones = (chosen.metric, chosen.windows, chosen.seqlen, chosen.reconstruct, chosen.distill)
    assert open_ones == (None,) * 5
    assert read_settings(PruneSettings, chosen.model_dump(mode="json")) == chosen


@pytest.mark.parametrize("texts", ["self", ["self"], ["self=1"], {"self": 1.0}], ids=str)
def test_text_that_the_model_writes_has_its_windows_however_it_is_given(texts: Any) -> None:
    chosen = settings(calibration=texts)
    assert (chosen.calibration, chosen.shape(1024)) == ("self", (4, 256))
