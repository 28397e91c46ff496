"""Windows in shares: the statistics of all windows at once, as far as fp32 can tell."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.calibration import (
    GradientNorm,
    Kind,
    StatisticsStore,
    calibrate,
    open_store,
)
from pruner_zero.calibration.shares import Share, share_gradients, share_inputs
from pruner_zero.models import LanguageModel
from pruner_zero.progress import SILENT
from tests.calibration.test_calibrate import KINDS, tiny, windows
from tests.text.refusals import refusal
from tests.tiny_models import ARCHITECTURES

T = TypeVar("T")
EPSILON = torch.finfo(torch.float32).eps
WINDOWS, TOKENS = 5, 12

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


class Here:
    """Shares in this process, one after the other."""

    def __init__(self, model: PreTrainedModel, windows: Tensor, count: int) -> None:
        self.model, self.windows = model, windows
        self.parts = windows.tensor_split(count)
        self.longest = max(map(len, self.parts))
        self.shares: list[Share] = []

    def begin(self) -> None:
        self.shares = [Share(self.model, part) for part in self.parts]

    def map(self, step: Callable[[Share], T]) -> Iterator[T]:
        yield from map(step, self.shares)


def in_shares(
    language_model: LanguageModel,
    count: int,
    folder: Path,
    norm: GradientNorm = "l2",
    pieces: int | None = None,
) -> StatisticsStore:
    model, text = language_model.model, windows(count=WINDOWS, seqlen=TOKENS)
    store = open_store(language_model, text, norm=norm, gradient_seqlen=pieces, folder=folder)
    shares = Here(model, text.tokens, count)
    share_gradients(model, shares, store, norm=norm, seqlen=pieces, progress=SILENT)
    share_inputs(model, shares, store, gram=True, progress=SILENT)
    return store


def at_once(
    language_model: LanguageModel,
    folder: Path,
    norm: GradientNorm = "l2",
    pieces: int | None = None,
) -> StatisticsStore:
    text = windows(count=WINDOWS, seqlen=TOKENS)
    store = open_store(language_model, text, norm=norm, gradient_seqlen=pieces, folder=folder)
    calibrate(language_model, text, KINDS, store, norm=norm, gradient_seqlen=pieces)
    return store


def files(store: StatisticsStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("*.safetensors")}


def check_close(found: StatisticsStore, expected: StatisticsStore, terms: int = WINDOWS) -> None:
    """As close as two orders of the same fp32 sums of so many terms are."""
    for block in range(2):
        found_of, of = (
            {kind: store.read(kind, block) for kind in KINDS} for store in (found, expected)
        )
        for name, X in of["X"].items():
            # Sums of numbers of one sign, each the same in both.
            for kind in ("X", "G"):
                known: Kind = kind
                torch.testing.assert_close(
                    found_of[known][name], of[known][name], rtol=terms * EPSILON, atol=0
                )
            # Products of both signs: what rounding can be is bounded by Σ|x_i x_j| <= X_i X_j.
            error = (found_of["gram"][name] - of["gram"][name]).abs()
            bound = 2 * WINDOWS * TOKENS * EPSILON * (2 * X.T @ X)
            assert (error <= bound).all()


@pytest.mark.parametrize(
    ("architecture", "count"), [("llama", 2), ("llama", 5), *((one, 3) for one in ARCHITECTURES)]
)
def test_shares_add_up_to_the_serial_statistics_up_to_rounding(
    architecture: str, count: int, tmp_path: Path
) -> None:
    language_model = tiny(architecture)
    found = in_shares(language_model, count, tmp_path / "shares")
    expected = at_once(language_model, tmp_path / "serial")
    # Same key, and the same layout on disk: what shares a tensor in one does in the other.
    assert found.folder.name == expected.folder.name
    assert {name: len(content) for name, content in files(found).items()} == {
        name: len(content) for name, content in files(expected).items()
    }
    check_close(found, expected)


@pytest.mark.parametrize("count", [1, 2, WINDOWS])
def test_shares_cut_their_windows_into_the_same_pieces(count: int, tmp_path: Path) -> None:
    # Two shares of five windows: one has none left when the other takes its last.
    found = in_shares(tiny(), count, tmp_path / "shares", pieces=TOKENS // 2)
    expected = at_once(tiny(), tmp_path / "serial", pieces=TOKENS // 2)
    assert found.folder.name == expected.folder.name
    check_close(found, expected, WINDOWS * 2)
    if count == 1:
        assert files(found) == files(expected)


@every_architecture
def test_one_share_is_the_serial_way_to_the_last_bit(architecture: str, tmp_path: Path) -> None:
    language_model = tiny(architecture)
    found = in_shares(language_model, 1, tmp_path / "shares")
    assert files(found) == files(at_once(language_model, tmp_path / "serial"))


def test_the_norm_of_g_reaches_the_shares(tmp_path: Path) -> None:
    found = in_shares(tiny(), 3, tmp_path / "shares", "l1")
    check_close(found, at_once(tiny(), tmp_path / "serial", "l1"))


def test_a_gradient_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    language_model = tiny()
    with torch.no_grad():
        language_model.model.lm_head.weight[0, 0] = torch.inf
    message = refusal(lambda: in_shares(language_model, 2, tmp_path))
    assert "the gradient of model.layers.0." in message
