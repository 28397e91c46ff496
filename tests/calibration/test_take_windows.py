"""Windows of a mixture of texts, and the windows that follow them."""

from pathlib import Path

import torch

from pruner_zero.calibration.windows import take_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.mixture import Mixture, SelfText, load_mixture
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SEQLEN = 24


def tiny() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")


def test_the_following_windows_are_the_rest_of_a_larger_number(prose: str) -> None:
    texts, model = load_mixture([prose]), tiny()
    whole = take_windows(texts, model, 10, SEQLEN, 3, after=0).tokens
    first = take_windows(texts, model, 6, SEQLEN, 3, after=0).tokens
    rest = take_windows(texts, model, 4, SEQLEN, 3, after=6).tokens
    assert torch.equal(torch.cat([first, rest]), whole)


def test_each_text_of_a_mixture_goes_on_where_it_ended(prose: str, tmp_path: Path) -> None:
    """Three parts are of a text and one part is of the model, which writes one window in four."""
    (corpus,), model = load_mixture([prose]).texts, tiny()
    mixture = Mixture((corpus, SelfText()), (3, 1))

    def take(windows: int, after: int) -> set[tuple[int, ...]]:
        taken = take_windows(mixture, model, windows, SEQLEN, 0, after=after, folder=tmp_path)
        return set(map(tuple, taken.tokens.tolist()))

    first, rest = take(8, after=0), take(4, after=8)
    assert len(first | rest) == 12
    assert first | rest == take(12, after=0)
