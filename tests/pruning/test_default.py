"""`prune` without a metric takes the best measured method, and without a text the model's."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, find_matrices
from pruner_zero.progress import Progress
from pruner_zero.pruning import prune
from pruner_zero.settings import PruneSettings, read_settings
from pruner_zero.settings.prune import DEFAULT
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {"windows": 4, "seqlen": 16, "sparsity": 0.5, "distill": 3}


def language_model() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")


class Notes(Progress):
    """A progress that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


def settings(**given: Any) -> PruneSettings:
    return read_settings(PruneSettings, {"model": "some", "sparsity": 0.5, **given})


def test_without_a_metric_all_of_the_default_is_taken() -> None:
    chosen = settings()
    assert chosen.is_default
    assert {name: getattr(chosen, name) for name in DEFAULT} == dict(DEFAULT)


def test_what_is_given_stays() -> None:
    chosen = settings(distill=7, refine=False)
    assert (chosen.metric, chosen.distill, chosen.refine) == (DEFAULT["metric"], 7, False)
    assert not chosen.is_default


@pytest.mark.parametrize(
    "given",
    [{"pattern": "2:4", "sparsity": None}, {"scope": "row"}, {"allocation": "owl"}],
    ids=str,
)
def test_where_not_all_weights_compete_wanda_takes_the_place_of_the_metric(
    given: dict[str, Any],
) -> None:
    chosen = settings(**given)
    assert (chosen.metric, chosen.update, chosen.distill) == ("wanda", "exact", 40)
    assert chosen.scope == given.get("scope")
    assert chosen.is_default
    assert settings(structure="channels").metric == "wanda"
    assert settings(structure="experts").metric == "reap"
    assert settings(scope="global").metric == DEFAULT["metric"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "W * (O * X)^0.73"),
        ({"pattern": "2:4", "sparsity": None}, "W * X (2:4)"),
        ({"allocation": "owl"}, "the share of each matrix given by the rule owl"),
    ],
)
def test_it_says_what_it_takes(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    progress = Notes()
    prune(language_model(), cache=tmp_path, progress=progress, **{**SMALL, "distill": 40, **given})
    (note,) = [note for note in progress.notes if "no metric is named" in note]
    assert told in note
    assert "40 steps of distillation" in note
    assert "hours" not in note


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({}, "--metric 'W * (O * X)^0.73' --scope global leaves"),
        ({"pattern": "2:4", "sparsity": None}, "--metric 'wanda' leaves"),
    ],
)
def test_it_says_what_takes_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], instead: str
) -> None:
    monkeypatch.setattr(import_module("pruner_zero.pruning.prune"), "_MANY_INPUTS", 32)
    progress = Notes()
    prune(language_model(), cache=tmp_path, progress=progress, **{**SMALL, "distill": 40, **given})
    (note,) = [note for note in progress.notes if "no metric is named" in note]
    widest = max(matrix.weight.shape[1] for matrix in find_matrices(language_model().model))
    assert f"hours for matrices of {widest} inputs: {instead}" in note


def test_with_a_metric_nothing_is_added() -> None:
    plain = settings(metric="wanda")
    assert (plain.refine, plain.asymmetric, plain.update, plain.distill) == (False, False, None, 0)


def test_the_parts_that_cannot_be_done_are_left_out() -> None:
    assert settings(offload=True).distill == 0
    assert not settings(mode="one-shot").asymmetric
    assert "--distill" in refusal(lambda: settings(offload=True, distill=5))


def test_the_model_writes_the_text_and_the_card_tells_all_of_it(tmp_path: Path) -> None:
    progress = Notes()
    output = tmp_path / "out"
    result = prune(
        language_model(), output=output, cache=tmp_path / "cache", progress=progress, **SMALL
    )
    assert any("self" in note for note in progress.notes)
    card = (output / "README.md").read_text()
    assert "4 windows of 16 tokens that the dense model wrote itself" in card
    assert "trained for 3 steps towards the dense model's predictions" in card
    assert "Nothing was retrained" not in card
    assert result.sparsity == pytest.approx(0.5)
    told = json.loads((output / "pruning.json").read_text())["distillation"]
    assert [point["step"] for point in told] == [0, 3]


def test_zeros_are_those_of_the_mask(tmp_path: Path) -> None:
    masked, distilled = language_model(), language_model()
    given = {"cache": tmp_path, "metric": "wanda", "calibration": "self", **SMALL}
    prune(masked, **{**given, "distill": 0})
    prune(distilled, **given)
    pairs = zip(find_matrices(masked.model), find_matrices(distilled.model), strict=True)
    for before, after in pairs:
        assert torch.equal(before.weight == 0, after.weight == 0)
        assert not torch.equal(before.weight, after.weight)


def test_a_run_that_is_cut_while_it_distills_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "cache", **SMALL}
    monkeypatch.setattr("pruner_zero.recovery.distillation.CHECKPOINT_MINUTES", 0.0)
    prune(language_model(), output=tmp_path / "whole", **given)
    from pruner_zero.recovery.train import Training

    step, taken = Training._step, 0

    def stop(training: Training, batch: Any) -> float:
        nonlocal taken
        taken += 1
        if taken > 2:
            raise KeyboardInterrupt
        return step(training, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(language_model(), output=tmp_path / "cut", **given)
    assert not (tmp_path / "cut").exists()
    taken = 0
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stop)
        # One step is left: the two that were taken are not taken again.
        prune(language_model(), output=tmp_path / "cut", **given)
    assert taken == 1
    for name in ("model.safetensors", "pruning.json", "README.md"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


def test_a_run_that_is_cut_while_it_distills_can_go_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"cache": tmp_path / "cache", **SMALL}

    def full(*_: object, **__: object) -> None:
        raise PrunerZeroError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr(import_module("pruner_zero.pruning.prune"), "distill", full)
        assert "no memory" in refusal(
            lambda: prune(language_model(), output=tmp_path / "o", **given)
        )
    notes = Notes()
    without = {**given, "distill": 0, "progress": notes}
    assert not prune(language_model(), output=tmp_path / "o", **without).distillation
    assert any(note.startswith("going on after block 2") for note in notes.notes)


def test_distillation_of_a_metric_that_looks_at_no_text_has_one_written(tmp_path: Path) -> None:
    result = prune(language_model(), "magnitude", cache=tmp_path, **SMALL)
    assert result.calibration["selection"] == "sampled"
    assert len(result.distillation) == 2
