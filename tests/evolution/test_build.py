"""The windows of a search: a text that would give none of them names the option to change."""

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import JudgedModel
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.mixture import Mixture, load_mixture
from tests.evolution.conftest import tiny_settings
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("option", "settings"),
    [("--windows", {"windows": 2}), ("--search-windows", {}), ("--final-windows", {})],
)
def test_a_share_too_small_for_a_window_names_the_option(
    option: str, settings: dict[str, int], prose: str
) -> None:
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    whole = load_mixture([prose])
    uneven = Mixture((*whole.texts, *load_mixture([prose[::-1]]).texts), (100.0, 1.0))
    calibration, search = (uneven, whole) if option == "--windows" else (whole, uneven)
    if option == "--final-windows":
        settings = {"search_windows": 200, "final_windows": 2}
    with pytest.raises(PrunerZeroError, match=f"choose a larger {option} or"):
        JudgedModel.of(model, tiny_settings(seqlen=8, **settings), calibration, search)
