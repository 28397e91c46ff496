"""`prune` as a Python function: model objects, strings, metrics as values, YAML."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import pruner_zero
from pruner_zero import Metric, PrunerZeroError, prune
from pruner_zero.models.matrices import Matrix
from pruner_zero.progress import reported_to
from pruner_zero.pruning.matrix import MatrixRecord, prune_matrix
from pruner_zero.text.corpus import Corpus
from tests.pruning.conftest import language_model
from tests.pruning.plain import places
from tests.tiny import tiny_tokenizer
from tests.tiny_models import VOCABULARY, tiny_model

SMALL: dict[str, Any] = {"windows": 3, "seqlen": 24}
HALF: dict[str, Any] = {**SMALL, "sparsity": 0.5}


def test_a_model_object_is_pruned_in_place(prose: str) -> None:
    model = tiny_model("llama")
    result = prune(model, "wanda", tokenizer=tiny_tokenizer(), calibration=[prose], **HALF)
    assert result.language_model.model is model
    assert result.output is None
    assert result.sparsity == 0.5
    assert all((place.weight == 0).float().mean() == 0.5 for place in places(model))
    assert result.settings.calibration == "(strings)"
    assert result.calibration["joined"] == "1 documents joined by '\\n\\n'"


def test_a_model_object_and_its_folder_are_pruned_alike(
    prose: str, llama_folder: Path, text_file: Path
) -> None:
    model = tiny_model("llama")
    prune(model, tokenizer=tiny_tokenizer(), calibration=iter([prose]), **HALF)
    loaded = pruner_zero.load_model(llama_folder)
    prune(loaded, calibration=text_file, **HALF)
    for from_object, from_folder in zip(places(model), places(loaded.model), strict=True):
        assert torch.equal(from_object.weight, from_folder.weight)


def test_an_error_says_that_a_model_object_may_be_pruned_in_part(
    prose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[str] = []

    def fails_later(matrix: Matrix, *rest: Any) -> MatrixRecord:
        if matrix.block:
            raise PrunerZeroError("no block but the first")
        finished.append(matrix.name)
        return prune_matrix(matrix, *rest)

    monkeypatch.setattr("pruner_zero.pruning.blocks.prune_matrix", fails_later)
    model = tiny_model("llama")
    with pytest.raises(PrunerZeroError, match=r"may be pruned in part by now: load it again\)$"):
        prune(model, "wanda", tokenizer=tiny_tokenizer(), calibration=[prose], **HALF)
    assert finished
    assert not model.get_parameter(f"{finished[0]}.weight").all()


def test_a_model_object_needs_its_tokenizer(prose: str) -> None:
    with pytest.raises(PrunerZeroError, match="needs its tokenizer: pass tokenizer="):
        prune(tiny_model("llama"), calibration=[prose], **HALF)


def test_no_strings_are_an_empty_text(prose: str) -> None:
    with pytest.raises(PrunerZeroError, match="is empty"):
        prune(language_model("llama"), calibration=[], **HALF)


def test_distillation_may_stand_in_the_method(prose: str) -> None:
    models = [language_model("llama") for _ in range(2)]
    methods: list[dict[str, Any]] = [
        {"metric": "wanda", "distill": 2},
        {"metric": "wanda+distill=2"},
    ]
    for model, method in zip(models, methods, strict=True):
        result = prune(model, calibration=[prose], **HALF, **method)
        assert result.distillation[-1].step == 2
    for by_option, by_text in zip(*(places(model.model) for model in models), strict=True):
        assert torch.equal(by_option.weight, by_text.weight)


def test_several_texts_give_windows_by_their_shares(
    prose: str, text_file: Path, tmp_path: Path
) -> None:
    corpus = Corpus("mine", prose[: len(prose) // 2])
    shares = {text_file: 1, corpus: 2, "self": 1}
    output = tmp_path / "out"
    options: dict[str, Any] = {"windows": 8, "seqlen": 24, "cache": tmp_path, "output": output}
    result = prune(language_model("llama"), sparsity=0.5, calibration=shares, **options)
    assert result.settings.calibration == {str(text_file): 1, "mine": 2, "self": 1}
    sources = result.calibration["sources"]
    assert [(source["text"], source["windows"]) for source in sources] == [
        (str(text_file), 2),
        ("mine", 4),
        ("self", 2),
    ]
    assert (
        f"8 windows of 24 tokens: 2 of `{text_file}`, 4 of `mine`, 2 that the dense model wrote "
        "itself, seed 0."
    ) in (output / "README.md").read_text()


def test_a_mixture_of_one_text_is_that_text(text_file: Path) -> None:
    mixed, alone = (
        prune(language_model("llama"), calibration=texts, **HALF)
        for texts in ({text_file: 0.3}, text_file)
    )
    assert mixed.to_json() == alone.to_json()


def test_a_metric_object_keeps_its_scope_unless_told_otherwise(prose: str) -> None:
    metric = Metric(Metric.of("W * G").expression, scope="global")
    options: dict[str, Any] = {"calibration": [prose], "update": "none", **SMALL}
    result = prune(language_model("llama"), metric, sparsity=0.5, **options)
    assert result.recipe.to_json()["scope"] == "global"
    assert result.mode == "one-shot"
    result = prune(language_model("llama"), metric, sparsity=0.5, scope="matrix", **options)
    assert result.recipe.to_json()["scope"] == "matrix"
    result = prune(language_model("llama"), metric, pattern="2:4", **options)
    assert result.recipe.to_json()["scope"] is None


@pytest.mark.parametrize(
    ("written", "scope"),
    [
        ("sparsity: 0.5", "global"),
        ("sparsity: 0.5\nscope: matrix", "matrix"),
        ("pattern: '2:4'", None),
    ],
)
def test_a_scope_or_pattern_of_the_settings_file_wins_over_the_scope_of_a_metric_object(
    written: str, scope: str | None, tmp_path: Path, prose: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(written)
    metric = Metric(Metric.of("W * G").expression, scope="global")
    result = prune(language_model("llama"), metric, config=config, calibration=[prose], **SMALL)
    assert result.recipe.to_json()["scope"] == scope
    assert result.settings.scope == scope


def test_the_settings_may_all_come_from_yaml(
    tmp_path: Path, llama_folder: Path, text_file: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {llama_folder}\ncalibration: {text_file}\nmetric: magnitude\nsparsity: 0.5\n"
        "windows: 3\nseqlen: 24\ninclude: ['*.mlp.*']\n"
    )
    result = prune(config=config, metric="wanda", seed=3)
    assert len(result.records) == 6
    assert result.settings.metric == "wanda"
    assert result.settings.seed == 3
    assert result.calibration["seed"] == 3


def test_a_tree_file_that_changes_during_the_run_changes_nothing(
    tmp_path: Path, prose: str
) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(Metric.of("wanda").to_json())

    class Meddling(pruner_zero.progress.Progress):
        def track(self, items: Any, label: str, total: int | None = None) -> Any:
            tree.unlink(missing_ok=True)
            yield from items

    with reported_to(Meddling()):
        result = prune(
            language_model("llama"), str(tree), calibration=[prose], output=tmp_path / "out", **HALF
        )
    assert not tree.exists()
    assert result.to_json()["expression"] == "W * X"
    assert json.loads((tmp_path / "out" / "metric.json").read_text())["name"] == "wanda"


def test_unknown_settings_are_named(prose: str) -> None:
    with pytest.raises(PrunerZeroError, match="no setting 'sparsty': did you mean 'sparsity'"):
        prune(language_model("llama"), sparsty=0.5, calibration=[prose])


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.999])
def test_the_ends_of_the_range_work(sparsity: float, prose: str) -> None:
    result = prune(
        language_model("llama"), sparsity=sparsity, calibration=[prose], seqlen=24, windows=2
    )
    assert result.sparsity == pytest.approx(sparsity, abs=0.04)


def test_a_failed_allocation_names_the_settings_to_change_and_keeps_finished_blocks(
    prose: str, tmp_path: Path
) -> None:
    model, output = language_model("llama"), tmp_path / "out"
    options: dict[str, Any] = {"calibration": [prose], "output": output, **HALF}
    options["metric"] = "wanda+obs"

    def allocate(_module: object, inputs: tuple[torch.Tensor]) -> None:
        # Not in the check of the blocks, which takes a few tokens before the first block is pruned.
        if inputs[0].shape[-2] == SMALL["seqlen"]:
            torch.empty(2**50)

    last = model.model.model.layers[1].mlp.down_proj
    handle = last.register_forward_pre_hook(allocate)
    words = (
        r"^out of memory: choose --distill 0, fewer --windows, a shorter --seqlen, or --offload$"
    )
    with pytest.raises(PrunerZeroError, match=words):
        prune(model, cache=tmp_path / "cache", **options)
    handle.remove()
    assert not output.exists()
    assert (tmp_path / "out.partial").exists()
    resumed = prune(language_model("llama"), cache=tmp_path / "cache", **options)
    assert json.loads((output / "timing.json").read_text())["first_block_of_this_process"] == 1
    whole = language_model("llama")
    prune(whole, cache=tmp_path / "cache", **{**options, "output": None})
    assert resumed.language_model.fingerprint() == whole.fingerprint()


def test_a_layer_that_its_model_does_not_call_is_pruned_by_magnitude_with_the_reason(
    prose: str,
) -> None:
    """Mamba multiplies the weight of dt_proj itself."""
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
    result = prune(
        MambaForCausalLM(config).eval(),
        "wanda",
        tokenizer=tiny_tokenizer(),
        calibration=[prose],
        sparsity=0.5,
        windows=2,
        seqlen=16,
    )
    notes = {record.name: record.note for record in result.records if record.note}
    reason = "its model does not call this layer, so its inputs are not known: pruned by magnitude"
    assert notes == {"backbone.layers.0.mixer.dt_proj": reason}
