"""Without a metric `prune` takes the best measured method; without a text the model writes one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.pruning.matrix import MatrixRecord, prune_matrix
from pruner_zero.pruning.prune import plan, prune
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.pruning.runner import for_training
from pruner_zero.sparsity.threshold import global_threshold
from pruner_zero.text.token_windows import Windows
from tests.pruning.test_resume import contents
from tests.text.refusals import refusal
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

MEMORY = "pruner_zero.training.distillation.available_bytes"
SMALL: dict[str, Any] = {"windows": 4, "seqlen": 16, "sparsity": 0.5, "distill": 3}


def language_model() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "llama")


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "2:4", "sparsity": None}, {"metric": "wanda"}], ids=str
)
def test_notes_say_all_that_will_be_done_before_anything_is(
    options: dict[str, Any], tmp_path: Path
) -> None:
    progress = Notes()
    given = {**SMALL, **options}
    with reported_to(progress):
        prune(language_model(), cache=tmp_path, **given)
    lines = plan(language_model(), **given).recipe.lines()
    assert lines[0] == "text: 4 windows of 16 tokens of text that the model writes"
    start = progress.lines.index(lines[0])
    assert progress.lines[start : start + len(lines)] == lines


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a wide one."""
    monkeypatch.setattr("pruner_zero.models.matrices.MANY_INPUTS", 32)


@pytest.mark.usefixtures("wide")
def test_wide_matrices_get_a_mask_without_gradients_of_weights(tmp_path: Path) -> None:
    result = prune(language_model(), cache=tmp_path, **SMALL)
    assert (result.recipe.update, result.recipe.reconstruct, result.recipe.distill) == (None, 2, 3)
    assert {entry.pattern for entry in result.raced} == {"50% global", "50% per row"}
    assert len(result.raced) == 2
    assert "G" not in result.recipe.kinds()


@pytest.mark.usefixtures("wide")
def test_the_text_has_as_many_windows_as_hold_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.pruning.default.TOKENS", 64)
    options: dict[str, Any] = {"sparsity": 0.5, "seqlen": 16, "distill": 1, "reconstruct": 0}
    result = prune(language_model(), calibration=["one two three " * 99], cache=tmp_path, **options)
    assert result.calibration["windows"] == 4 * 64 // 16


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


def test_the_model_writes_the_text_and_the_card_describes_the_run(tmp_path: Path) -> None:
    progress = Notes()
    output = tmp_path / "out"
    with reported_to(progress):
        result = prune(language_model(), output=output, cache=tmp_path / "cache", **SMALL)
    assert any("self" in note for note in progress.lines)
    card = (output / "README.md").read_text()
    assert "4 windows of 16 tokens that the dense model wrote itself" in card
    assert "trained in 3 steps towards the dense model's predictions" in card
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


def never(*_: object) -> None:
    raise AssertionError("what was decided at the first start is decided again")


def stop_in_the_second_block(model: Any, **options: Any) -> None:
    """Prune until Ctrl-C comes, when the first block is finished."""

    def prune_some(matrix: Matrix, *rest: Any) -> MatrixRecord:
        if matrix.block:
            raise KeyboardInterrupt
        return prune_matrix(matrix, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruner_zero.pruning.blocks.prune_matrix", prune_some)
        with pytest.raises(KeyboardInterrupt):
            prune(model, **options)


def test_a_run_that_goes_on_keeps_the_mask_that_won_its_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", **SMALL, "distill": 0}
    whole = prune(language_model(), output=tmp_path / "whole", **options)
    stop_in_the_second_block(language_model(), output=tmp_path / "cut", **options)
    monkeypatch.setattr("pruner_zero.pruning.race.race", never)
    cut = prune(language_model(), output=tmp_path / "cut", **options)
    assert cut.raced == whole.raced
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def test_the_threshold_of_a_mask_that_won_its_race_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds: list[int] = []

    def counted(scores: Any, sparsity: float) -> Any:
        thresholds.append(len(scores))
        return global_threshold(scores, sparsity)

    monkeypatch.setattr("pruner_zero.sparsity.selection.global_threshold", counted)
    result = prune(language_model(), cache=tmp_path, **{**SMALL, "reconstruct": 0, "distill": 0})
    assert "global" in result.raced[0].pattern
    assert len(thresholds) == sum("global" in entry.pattern for entry in result.raced)


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
        patch.setattr("pruner_zero.pruning.race.race", never)
        # One step is left: the two that were taken are not taken again, and no mask is judged.
        prune(language_model(), output=tmp_path / "cut", **options)
    assert taken == 1
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


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
    recipe = Recipe("both", None, reconstruct=1, distill=1)
    blocks, distilled = for_training(windows, recipe)
    assert torch.equal(torch.cat([blocks.tokens, distilled.tokens]), windows.tokens)
    assert len(distilled) == 2
    few = replace(windows, tokens=windows.tokens[:3])
    assert for_training(few, recipe) == (few, few)
    assert for_training(windows, replace(recipe, distill=0)) == (windows, windows)


def test_distillation_after_a_metric_without_text_has_the_model_write_one(tmp_path: Path) -> None:
    result = prune(language_model(), "magnitude", cache=tmp_path, **SMALL)
    assert result.calibration["selection"] == "sampled"
    assert len(result.distillation) == 2


def test_a_distillation_beyond_the_memory_is_refused_before_the_model_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MEMORY, lambda _: 1000)
    line = refusal(lambda: prune(language_model(), cache=tmp_path, **SMALL))
    assert "--distill 0" in line
    assert not list(tmp_path.iterdir())
    result = prune(language_model(), cache=tmp_path, **{**SMALL, "distill": 0})
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)


def test_on_disk_the_default_leaves_out_a_distillation_beyond_the_memory(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(MEMORY, lambda _: 1000)
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


@pytest.mark.parametrize(("first", "second"), [(1000, 10**12), (10**12, 1000)])
def test_on_disk_a_run_goes_on_whatever_memory_there_is_then(
    first: int, second: int, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Whether there is room for the distillation is decided once, at the first start."""
    options: dict[str, Any] = {"calibration": text_file, "offload": True, **SMALL}
    options |= {"distill": None, "cache": tmp_path / "cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruner_zero.pruning.default.DISTILL", 2)
        patch.setattr(MEMORY, lambda _: first)
        whole = prune(llama_folder, output=tmp_path / "whole", **options)
        stop_in_the_second_block(llama_folder, output=tmp_path / "cut", **options)
        patch.setattr(MEMORY, lambda _: second)
        notes = Notes()
        with reported_to(notes):
            cut = prune(llama_folder, output=tmp_path / "cut", **options)
    assert any(line.startswith("going on after block 1") for line in notes.lines)
    assert whole.recipe.distill == cut.recipe.distill == (2 if first > second else 0)
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
