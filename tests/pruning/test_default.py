"""Without a metric `prune` takes the best measured method; without a text the model writes one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.metric import Metric
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.recipe import for_wide
from pruner_zero.pruning.runner import for_training
from pruner_zero.settings.prune import DEFAULT, WIDE_METRIC, PruneSettings
from pruner_zero.settings.read import read_settings
from pruner_zero.text.windows import Windows
from tests.text.refusals import refusal
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

SMALL: dict[str, Any] = {"windows": 4, "seqlen": 16, "sparsity": 0.5, "distill": 3}


def language_model() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")


def settings(**options: Any) -> PruneSettings:
    return read_settings(PruneSettings, {"model": "some", "sparsity": 0.5, **options})


def test_without_a_metric_all_of_the_default_is_taken() -> None:
    chosen = settings()
    assert chosen.is_default
    assert {name: getattr(chosen, name) for name in DEFAULT} == dict(DEFAULT)


@pytest.mark.parametrize(
    ("options", "windows", "seqlen"),
    [
        ({}, 192, 256),
        ({"calibration": "self"}, 192, 256),
        ({"calibration": {"self": 2.0}}, 192, 256),
        ({"calibration": "self", "metric": "wanda"}, 96, 256),
        ({"windows": 8}, 8, 256),
        ({"seqlen": 1024}, 48, 1024),
        ({"mode": "one-shot"}, 96, 256),
        ({"structure": "channels"}, 96, 256),
        ({"calibration": "builtin:pydoc"}, 48, 1024),
        ({"calibration": "builtin:pydoc", "metric": "wanda"}, 24, 1024),
        ({"calibration": {"builtin:pydoc": 1.0, "self": 1.0}}, 48, 1024),
    ],
    ids=str,
)
def test_windows_that_the_model_writes_alone_are_shorter_and_more(
    options: dict[str, Any], windows: int, seqlen: int
) -> None:
    chosen = settings(**options)
    assert (chosen.windows, chosen.seqlen) == (windows, seqlen)


def test_settings_that_are_given_stay() -> None:
    chosen = settings(distill=7, reconstruct=3)
    assert (chosen.metric, chosen.distill, chosen.reconstruct) == (DEFAULT["metric"], 7, 3)
    assert chosen.is_default


@pytest.mark.parametrize(
    "options",
    [{"pattern": "2:4", "sparsity": None}, {"scope": "row"}],
    ids=str,
)
def test_where_not_all_weights_compete_wanda_takes_the_place_of_the_metric(
    options: dict[str, Any],
) -> None:
    chosen = settings(**options)
    assert (chosen.metric, chosen.reconstruct, chosen.distill) == ("wanda", 4, 40)
    assert chosen.scope == options.get("scope")
    assert chosen.is_default
    assert settings(structure="channels").metric == "wanda"
    assert settings(structure="heads").metric == "X * row_normalize(W * X)"
    assert settings(structure="experts").metric == "reap"
    assert settings(scope="global").metric == DEFAULT["metric"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, DEFAULT["metric"]),
        ({"pattern": "2:4", "sparsity": None}, "W * X (2:4)"),
    ],
)
def test_a_note_describes_the_default_method(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    progress = Notes()
    with reported_to(progress):
        prune(language_model(), cache=tmp_path, **{**SMALL, "distill": 40, **options})
    (note,) = [note for note in progress.lines if "No --metric" in note]
    assert words in note
    assert "40 steps of distillation" in note


@pytest.mark.parametrize(
    "options", [{}, {"scope": "row"}, {"pattern": "2:4", "sparsity": None}], ids=str
)
def test_wide_matrices_get_a_mask_without_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("pruner_zero.pruning.recipe.MANY_INPUTS", 32)
    progress = Notes()
    with reported_to(progress):
        result = prune(language_model(), cache=tmp_path, **{**SMALL, **options})
    assert (result.recipe.steps, result.recipe.reconstruct, result.recipe.distill) == ((), 2, 3)
    assert result.recipe.pattern.reach != "model"
    if options:
        assert str(result.metric.expression) == WIDE_METRIC
    raced = {(entry.metric, entry.pattern) for entry in result.raced}
    equal, by_role = "50% per row", "50% per row, shares by role"
    rivals = {(WIDE_METRIC, by_role), (WIDE_METRIC, equal), ("W * X", equal)}
    assert raced == (set() if options else rivals)
    (note,) = [note for note in progress.lines if "No --metric" in note]
    assert "each block trained towards the dense block in 2 passes" in note


def test_wide_matrices_whose_weights_all_compete_keep_the_metric_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients the scores of two matrices cannot be compared (benchmarks/why.md)."""
    monkeypatch.setattr("pruner_zero.pruning.recipe.MANY_INPUTS", 32)
    result = prune(language_model(), cache=tmp_path, scope="global", **SMALL)
    assert result.metric.expression == Metric.of(DEFAULT["metric"]).expression


@pytest.mark.parametrize("options", [{}, {"distill": 2}, {"scope": "row"}, {"pattern": "2:4"}])
def test_the_recorded_settings_give_the_default_again(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """They name no metric, which would leave out the race and what wide matrices get."""
    given = {"windows": 4, "seqlen": 16, "sparsity": 0.5, **options}
    if "pattern" in options:
        del given["sparsity"]
    result = prune(language_model(), cache=tmp_path, **given)
    recorded = {k: v for k, v in result.to_json()["settings"].items() if k != "model"}
    assert not {"metric", "reconstruct"} & recorded.keys()
    assert ("distill" in recorded) == ("distill" in options)
    again = prune(language_model(), cache=tmp_path, **recorded)
    assert again.raced == result.raced
    assert again.records == result.records


def test_amounts_that_are_asked_for_stay_where_matrices_are_wide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.pruning.recipe.MANY_INPUTS", 32)
    result = prune(language_model(), cache=tmp_path, **SMALL, reconstruct=3)
    assert (result.recipe.reconstruct, result.recipe.distill) == (3, 3)
    assert WIDE_METRIC in {entry.metric for entry in result.raced}


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, 384),
        ({"calibration": "builtin:pydoc"}, 96),
        ({"windows": 8}, 8),
        ({"mode": "one-shot"}, 96),
        ({"structure": "channels"}, 96),
    ],
    ids=str,
)
def test_wide_matrices_get_more_text(options: dict[str, Any], windows: int) -> None:
    assert settings(**options).for_wide().windows == windows


def test_prune_takes_more_text_for_wide_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.pruning.recipe.MANY_INPUTS", 32)
    text = tmp_path / "text.txt"
    text.write_text("one two three four five " * 500)
    options: dict[str, Any] = {"sparsity": 0.5, "seqlen": 4, "distill": 1}
    recorded = prune(language_model(), calibration=text, cache=tmp_path, **options).to_json()
    assert (recorded["calibration"]["windows"], recorded["settings"]["windows"]) == (96, 96)


@pytest.mark.parametrize(
    ("options", "amounts"),
    [({}, (2, 60)), ({"distill": 5}, (2, 5)), ({"mode": "one-shot"}, (0, 40))],
    ids=str,
)
def test_wide_matrices_get_fewer_passes_and_more_steps_of_distillation(
    options: dict[str, Any], amounts: tuple[int, int]
) -> None:
    chosen = settings(**options)
    method = parse_recipe(
        chosen.metric,
        sparsity=0.5,
        scope=chosen.scope,
        update=chosen.update,
        reconstruct=chosen.reconstruct,
        distill=chosen.distill,
    )
    matrices = find_matrices(tiny_model("llama"))
    method = for_wide(method, chosen.mode, matrices, chosen.model_fields_set)
    assert (method.reconstruct, method.distill) == amounts


def test_with_a_metric_nothing_is_added() -> None:
    plain = settings(metric="wanda")
    assert (plain.reconstruct, plain.update, plain.distill) == (0, None, 0)


def test_the_parts_that_cannot_be_done_are_left_out() -> None:
    one_shot = settings(mode="one-shot")
    assert (one_shot.reconstruct, one_shot.update, one_shot.distill) == (0, "exact", 40)


def test_the_model_writes_the_text_and_the_card_describes_the_run(tmp_path: Path) -> None:
    progress = Notes()
    output = tmp_path / "out"
    with reported_to(progress):
        result = prune(language_model(), output=output, cache=tmp_path / "cache", **SMALL)
    assert any("self" in note for note in progress.lines)
    card = (output / "README.md").read_text()
    assert "4 windows of 16 tokens that the dense model wrote itself" in card
    assert "trained for 3 steps towards the dense model's predictions" in card
    assert "Nothing was retrained" not in card
    assert result.sparsity == pytest.approx(0.5)
    curve = json.loads((output / "pruning.json").read_text())["distillation"]
    assert [point["step"] for point in curve] == [0, 3]


def test_distillation_keeps_the_zeros_of_the_mask(tmp_path: Path) -> None:
    masked, distilled = language_model(), language_model()
    options = {"cache": tmp_path, "metric": "wanda", "calibration": "self", **SMALL}
    prune(masked, **{**options, "distill": 0})
    prune(distilled, **options)
    pairs = zip(find_matrices(masked.model), find_matrices(distilled.model), strict=True)
    for before, after in pairs:
        assert torch.equal(before.weight == 0, after.weight == 0)
        assert not torch.equal(before.weight, after.weight)


def test_distillation_trains_no_matrix_that_is_left_out() -> None:
    before, after = language_model(), language_model()
    options = {"metric": "wanda", "calibration": ["one word after another " * 90]}
    prune(after, exclude=["*.0.*"], **{**SMALL, **options})
    trained = dict(after.model.named_parameters())
    for matrix in find_matrices(before.model):
        same = torch.equal(matrix.parameter, trained[matrix.parameter_name])
        assert same == (matrix.block == 0), matrix.name


def test_distillation_with_one_window_is_refused_before_anything_is_pruned(tmp_path: Path) -> None:
    model = language_model()
    options = {**SMALL, "windows": 1, "metric": "wanda", "calibration": "self"}
    line = refusal(lambda: prune(model, cache=tmp_path, **options))
    assert "distillation needs 2 calibration windows" in line
    dense = language_model().model.state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in model.model.state_dict().items())


def test_gradients_in_float16_are_refused_before_the_model_writes_a_text(tmp_path: Path) -> None:
    model = language_model()
    model.model.half()
    assert "gradients in float16 vanish" in refusal(lambda: prune(model, cache=tmp_path, **SMALL))
    assert not list(tmp_path.iterdir())


def test_steps_of_distillation_beside_a_method_that_names_others_are_refused() -> None:
    options = {**SMALL, "metric": "wanda+distill=2", "calibration": "self"}
    line = refusal(lambda: prune(language_model(), **{**options, "distill": 0}))
    assert "leave it out, or --distill 0" in line


def test_a_run_that_is_cut_while_it_distills_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", **SMALL}
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)
    prune(language_model(), output=tmp_path / "whole", **options)
    from pruner_zero.training.train import Training

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
            prune(language_model(), output=tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()
    taken = 0
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stop)
        # One step is left: the two that were taken are not taken again.
        prune(language_model(), output=tmp_path / "cut", **options)
    assert taken == 1
    for name in ("model.safetensors", "pruning.json", "README.md"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


def test_a_run_that_is_cut_while_it_distills_can_go_on_without_distilling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "metric": "wanda", **SMALL}

    def full(*_: object, **__: object) -> None:
        raise PrunerZeroError("no memory is left")

    with monkeypatch.context() as patch:
        patch.setattr("pruner_zero.training.train.Training.run", full)
        assert "no memory" in refusal(
            lambda: prune(language_model(), output=tmp_path / "o", **options)
        )
    notes = Notes()
    without = {**options, "distill": 0}
    with reported_to(notes):
        assert not prune(language_model(), output=tmp_path / "o", **without).distillation
    assert any(note.startswith("going on after block 2") for note in notes.lines)


def test_passes_have_other_windows_without_distillation_so_that_a_cut_run_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", **SMALL}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pruner_zero.training.train.Training.run", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(language_model(), output=tmp_path / "o", **options)
    without = {**options, "distill": 0}
    line = refusal(lambda: prune(language_model(), output=tmp_path / "o", **without))
    assert "(--distill changed)" in line


def test_blocks_and_distillation_are_trained_on_halves_of_the_windows(tmp_path: Path) -> None:
    windows = Windows(torch.arange(20).view(5, 4), "text", None, "", None, "sampled")
    blocks, distilled = for_training(windows)
    assert torch.equal(torch.cat([blocks.tokens, distilled.tokens]), windows.tokens)
    assert len(distilled) == 2
    few = replace(windows, tokens=windows.tokens[:3])
    assert for_training(few) == (few, few)


def test_distillation_after_a_metric_without_text_has_the_model_write_one(tmp_path: Path) -> None:
    result = prune(language_model(), "magnitude", cache=tmp_path, **SMALL)
    assert result.calibration["selection"] == "sampled"
    assert len(result.distillation) == 2


def test_a_distillation_beyond_the_memory_is_refused_before_the_model_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.available_bytes", lambda _: 1000)
    line = refusal(lambda: prune(language_model(), cache=tmp_path, **SMALL))
    assert "--distill 0" in line
    assert not list(tmp_path.iterdir())
    result = prune(language_model(), cache=tmp_path, **{**SMALL, "distill": 0})
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)


def test_on_disk_the_default_leaves_out_a_distillation_beyond_the_memory(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("pruner_zero.training.distillation.available_bytes", lambda _: 1000)
    options: dict[str, Any] = {"calibration": text_file, "offload": True, "cache": tmp_path}
    options |= {"output": tmp_path / "out", **SMALL, "distill": None}
    notes = Notes()
    with reported_to(notes):
        result = prune(llama_folder, **options)
    assert any("beside" in line and line.endswith(": it is left out") for line in notes.lines)
    assert result.recipe.distill == 0
    assert not result.distillation
    line = refusal(lambda: prune(llama_folder, **{**options, "distill": 3, "overwrite": True}))
    assert "--distill 0" in line
