"""Calibration computes each kind of statistic once and keeps it for later runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate, open_store
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.statistics import Kind
from pruner_zero.files import default_cache, locked
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import Windows, consecutive_windows, random_windows
from tests.calibration.reference import plain_inputs
from tests.text.refusals import refusal
from tests.tiny import FOX, Notes, tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, FUSED_EXPERTS, tiny_model

KINDS: tuple[Kind, ...] = ("G", "X", "gram")
CORPUS = Corpus("fox", FOX)


def tiny(architecture: str = "llama", seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny_model(architecture, seed), tiny_tokenizer(), architecture)


def windows(seed: int = 0, count: int = 3, seqlen: int = 11) -> Windows:
    return random_windows(CORPUS, tiny_tokenizer(), count, seqlen, seed)


class Work:
    """Counts the passes, block runs and backward passes of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.passes = self.blocks = self.backwards = 0
        model.register_forward_pre_hook(lambda *_: self._count("passes"))
        # A block that is bypassed is called but computes nothing inside.
        for block in find_blocks(model):
            inside = next(module for module in block.modules() if isinstance(module, nn.Linear))
            inside.register_forward_hook(lambda *_: self._count("blocks"))
        last = find_matrices(model)[-1]
        last.parameter.register_post_accumulate_grad_hook(lambda _: self._count("backwards"))

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)

    def of(self, action: Callable[[], object]) -> dict[str, int]:
        self.passes = self.blocks = self.backwards = 0
        action()
        return {"passes": self.passes, "blocks": self.blocks, "backwards": self.backwards}


NOTHING = {"passes": 0, "blocks": 0, "backwards": 0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_of_every_block_has_every_statistic(architecture: str, tmp_path: Path) -> None:
    language_model, text = tiny(architecture), windows()
    model = language_model.model
    store = open_store(language_model, text, folder=tmp_path)
    calibrate(language_model, text, KINDS, store)
    matrices, inputs = find_matrices(model), plain_inputs(model, text.tokens)
    gradients = collect_gradients(model, matrices, text.tokens)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    for block in range(2):
        G, X, gram = (store.read(kind, block) for kind in KINDS)
        block_matrices = {m.name: m.weight.shape[1] for m in matrices if m.block == block}
        assert G.keys() == X.keys() == gram.keys() == block_matrices.keys()
        for name, width in block_matrices.items():
            assert torch.equal(G[name], gradients[name]["G"])
            torch.testing.assert_close(X[name], inputs.X(name, width, 3), **close)
            torch.testing.assert_close(gram[name], inputs.gram(name, width, 3), **close)


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    language_model, text = tiny(), windows()
    work = Work(language_model.model)
    store = open_store(language_model, text, folder=tmp_path)
    first = work.of(lambda: calibrate(language_model, text, ["G"], store))
    assert first == {"passes": 3, "blocks": 6, "backwards": 3}
    only_inputs = work.of(lambda: calibrate(language_model, text, ["G", "X"], store))
    assert only_inputs["backwards"] == 0
    # One to learn what a block returns, and the check that blocks can be run one after the other:
    # the same for one window, and twice through the two blocks.
    assert only_inputs["blocks"] == 2 * 3 + 1 + 1 + 2 * 2
    gram_too = work.of(lambda: calibrate(language_model, text, KINDS, store))
    assert gram_too["backwards"] == 0
    assert work.of(lambda: calibrate(language_model, text, KINDS, store)) == NOTHING
    # A later run, with the model loaded anew.
    again = open_store(tiny(), windows(), folder=tmp_path)
    assert work.of(lambda: calibrate(language_model, text, KINDS, again)) == NOTHING


def test_gram_brings_x_along_and_no_kind_costs_nothing(tmp_path: Path) -> None:
    language_model = tiny()
    work, store = Work(language_model.model), open_store(tiny(), windows(), folder=tmp_path)
    assert work.of(lambda: calibrate(language_model, windows(), [], store)) == NOTHING
    calibrate(tiny(), windows(), ["gram"], store)
    assert [store.has(kind) for kind in KINDS] == [False, True, True]


@pytest.mark.fault("a bit flipped in, or the end torn off, a file of the statistics cache")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["flipped byte", "no manifest", "no file"])
def test_a_damaged_kind_is_computed_again_and_no_other_kind(
    kind: Kind, damage: str, tmp_path: Path
) -> None:
    language_model, text = tiny(), windows()
    store = open_store(language_model, text, folder=tmp_path)
    calibrate(language_model, text, KINDS, store)
    whole = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    file = store.folder / f"{kind}-0001.safetensors"
    if damage == "flipped byte":
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    elif damage == "no file":
        file.unlink()
    else:
        (store.folder / f"{kind}.json").unlink()
    work, later = Work(language_model.model), StatisticsStore(store.folder, store.settings)
    done = work.of(lambda: calibrate(language_model, text, KINDS, later))
    assert (done["backwards"] > 0) == (kind == "G")
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == whole


def test_a_setting_that_changes_the_statistics_has_another_folder(tmp_path: Path) -> None:
    changed = tiny()
    changed.model.config.rms_norm_eps = 1e-3
    models = [tiny(), tiny(seed=1), tiny("mistral"), changed]
    texts = [windows(), windows(seed=1), windows(count=2), windows(seqlen=10)]
    pairs = [*((model, texts[0]) for model in models), *((models[0], text) for text in texts[1:])]
    assert len({open_store(*pair, folder=tmp_path).folder for pair in pairs}) == 7


def test_the_same_tokens_cut_into_other_windows_have_another_folder(tmp_path: Path) -> None:
    cuts = [consecutive_windows(CORPUS, tiny_tokenizer(), 60 // n, n) for n in (2, 3)]
    assert torch.equal(cuts[0].tokens.flatten(), cuts[1].tokens.flatten())
    assert len({open_store(tiny(), cut, folder=tmp_path).folder for cut in cuts}) == 2


@pytest.mark.parametrize(
    ("place", "version"),
    [("torch.__version__", "0.0"), ("importlib.metadata.version", lambda _: "0.0")],
)
def test_statistics_of_another_version_have_another_folder(
    place: str, version: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_store(tiny(), windows(), folder=tmp_path).folder
    monkeypatch.setattr(place, version)
    assert open_store(tiny(), windows(), folder=tmp_path).folder != folder


@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_experts_that_no_gradient_reaches_are_noted(architecture: str, tmp_path: Path) -> None:
    language_model, text = tiny(architecture), windows(count=1, seqlen=2)
    store, notes = open_store(language_model, text, folder=tmp_path), Notes()
    with reported_to(notes):
        calibrate(language_model, text, ["G"], store)
    silent = {name: not values.any() for name, values in store.read("G", 1).items()}
    assert any(silent.values())
    line = next(line for line in notes.lines if ".1." in line)
    assert line.startswith("no gradient reaches ")
    assert {name: name in line for name in silent} == silent


def test_a_model_without_any_gradient_is_noted_and_does_not_crash(tmp_path: Path) -> None:
    language_model, text = tiny(), windows()
    with torch.no_grad():
        language_model.model.lm_head.weight.zero_()
    store, notes = open_store(language_model, text, folder=tmp_path), Notes()
    with reported_to(notes):
        calibrate(language_model, text, ["G"], store)
    assert store.has("G")
    assert len(notes.lines) == 2  # one a block


def test_a_store_that_another_process_fills_is_left_to_it(tmp_path: Path) -> None:
    language_model, text = tiny(), windows()
    store = open_store(language_model, text, folder=tmp_path)
    with locked(store.folder):
        message = refusal(lambda: calibrate(language_model, text, ["X"], store))
        assert str(store.folder) in message
    calibrate(language_model, text, ["X"], store)
    with locked(store.folder):  # statistics that are there can be used meanwhile
        calibrate(language_model, text, ["X"], store)


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    text = windows()
    text.tokens[0, 0] = 10_000
    store = open_store(tiny(), text, folder=tmp_path)
    assert "token 10000" in refusal(lambda: calibrate(tiny(), text, ["X"], store))


def test_an_interrupted_calibration_leaves_its_kind_absent(tmp_path: Path) -> None:
    language_model, text = tiny(), windows()
    store = open_store(language_model, text, folder=tmp_path)

    def interrupt(_block: nn.Module, _inputs: object, output: Any) -> None:
        if (store.folder / "X-0000.safetensors").is_file():
            raise KeyboardInterrupt

    with (
        find_blocks(language_model.model)[1].register_forward_hook(interrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        calibrate(language_model, text, ["X"], store)
    assert not store.has("X")
    calibrate(language_model, text, ["X"], store)
    assert store.has("X")


def test_calibration_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    language_model, text = tiny("mixtral"), windows()
    before = language_model.fingerprint()
    calibrate(language_model, text, KINDS, open_store(language_model, text, folder=tmp_path))
    assert language_model.fingerprint() == before


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    store: StatisticsStore = open_store(tiny(), windows())
    assert store.folder.parent == tmp_path
    monkeypatch.delenv("PRUNER_ZERO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/pruner-zero")
    monkeypatch.setenv("HOME", "/home/fox")
    for unset in ("PRUNER_ZERO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(unset, "")
        assert default_cache().is_absolute()
    assert default_cache() == Path("/home/fox/.cache/pruner-zero")
