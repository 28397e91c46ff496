"""Structured pruning: a mask until the model is saved, then a smaller model of the same kind."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, HeliumConfig, HeliumForCausalLM, PreTrainedModel

from pruner_zero.choices import Structure
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.couplings import find_couplings
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.structure.units import EqualWidths
from pruner_zero.text.token_windows import Windows
from tests.conftest import save_tiny
from tests.pruning.conftest import OpenStore, language_model, recipe_of
from tests.structure.test_couplings import CASES, logits
from tests.structure.test_folders import check_loads_alone
from tests.tiny import tiny_tokenizer
from tests.tiny_models import INNER, VOCABULARY, tiny_model

# Two thirds of the 48 channels stay.
SMALL: dict[str, Any] = {
    "structure": "channels",
    "sparsity": 0.34,
    "windows": 3,
    "seqlen": 24,
}
KEPT = 32
# Half of two key-value heads.
HEADS: dict[str, Any] = {"structure": "heads", "sparsity": 0.5}


def pruned(model: Any, text: str, **settings: Any) -> PruneResult:
    options = {"metric": "wanda", "calibration": [text], **SMALL, **settings}
    tokenizer = tiny_tokenizer() if isinstance(model, PreTrainedModel) else None
    return prune(model, tokenizer=tokenizer, **options)


UNITS: dict[Structure, dict[str, Any]] = {
    "channels": {"sparsity": 0.34},
    "heads": {"sparsity": 0.5},
}
Masked = Callable[..., None]


@pytest.fixture
def masked(windows: Windows, new_store: OpenStore) -> Masked:
    """Prunes a model in place up to the masks alone."""

    def mask(model: LanguageModel, structure: Structure = "channels", **settings: Any) -> None:
        recipe = recipe_of("wanda", structure=structure, **UNITS[structure], **settings)
        with ExitStack() as undo:
            run_recipe(model, windows, recipe.fitted(model), new_store(model), undo=undo)

    return mask


def test_folders_load_without_this_package_and_compute_the_same_as_the_masks(
    masked: Masked, prose: str, tmp_path: Path
) -> None:
    expected = {}
    for structure, architecture in CASES:
        place = tmp_path / f"{structure}-{architecture}"
        model = language_model(architecture)
        masked(model, structure)
        expected[place.name] = logits(model.model)
        dense = save_tiny(tmp_path / "dense" / place.name, architecture)
        options = HEADS if structure == "heads" else {}
        result = pruned(dense, prose, windows=4, output=place, **options)
        cut = logits(result.language_model.model)
        torch.testing.assert_close(cut, expected[place.name], atol=1e-5, rtol=1e-5)
    check_loads_alone(tmp_path, expected)


def test_the_units_are_those_of_the_largest_contribution(windows: Windows, masked: Masked) -> None:
    """The sum over outputs of W²·X², by a plain loop on the inputs of down_proj."""
    model = language_model("llama")
    inputs: list[torch.Tensor] = []
    down = model.model.model.layers[0].mlp.down_proj
    dense = down.weight.detach().clone()
    handle = down.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        model.model(windows.tokens)
    handle.remove()
    energy = torch.cat(inputs).flatten(0, 1).square().sum(0)
    totals = [float((dense[:, unit] ** 2).sum() * energy[unit]) for unit in range(INNER)]
    kept = sorted(sorted(range(INNER), key=totals.__getitem__)[-KEPT:])
    masked(model)
    mlp = model.model.model.layers[0].mlp
    for weight, axis in ((mlp.gate_proj.weight, 1), (mlp.up_proj.weight, 1), (down.weight, 0)):
        assert weight.any(axis).nonzero().flatten().tolist() == kept


def test_the_consumer_is_refitted_unless_told_otherwise(masked: Masked) -> None:
    dense, plain, refitted = (language_model("llama") for _ in range(3))
    masked(plain, update="none")
    masked(refitted)
    outputs = [
        model.model.model.layers[0].mlp.down_proj.weight.detach()
        for model in (dense, plain, refitted)
    ]
    kept = outputs[1].any(0)
    assert torch.equal(outputs[1][:, kept], outputs[0][:, kept])
    assert not torch.allclose(outputs[2][:, kept], outputs[0][:, kept], atol=1e-3)
    gates = [
        model.model.model.layers[0].mlp.gate_proj.weight[kept] for model in (dense, plain, refitted)
    ]
    assert torch.equal(gates[0], gates[1])
    assert torch.equal(gates[0], gates[2])


@pytest.mark.parametrize(
    "settings",
    [
        {"update": "none"},
        {"metric": "gblm"},
        {"metric": "sparsegpt"},
        {"metric": "W - G"},
        {"metric": "wanda", "distill": 2},
    ],
    ids=str,
)
def test_units_stay_whole_under_every_method(settings: dict[str, Any], prose: str) -> None:
    model = tiny_model("llama")
    before = model.num_parameters()
    result = pruned(model, prose, **settings)
    assert result.language_model.model is model
    assert result.sparsity == pytest.approx(1 / 3)
    assert result.parameters == (before, model.num_parameters())
    assert before - model.num_parameters() == 2 * 3 * 32 * (INNER - KEPT)
    for coupling in find_couplings(model, "channels"):
        assert coupling.count == KEPT
        assert model.get_submodule(coupling.consumer).get_parameter("weight").any(0).all()


@pytest.mark.parametrize("parameters", ["0.95", 30_000, "29.9K"])
def test_as_many_units_stay_as_the_parameters_allow(parameters: float | str, prose: str) -> None:
    model = tiny_model("llama")
    dense = model.num_parameters()
    result = pruned(model, prose, sparsity=None, parameters=parameters)
    most = {"0.95": 0.95 * dense, "29.9K": 29_900}.get(str(parameters), 30_000)
    assert model.num_parameters() == result.parameters[1] <= most
    # More channels would be too many.
    assert most < model.num_parameters() + 2 * 3 * 32 * 16
    assert result.settings.parameters == str(parameters)


@pytest.mark.parametrize("structure", ["channels", "heads"])
@pytest.mark.parametrize("parameters", [100, 1.0, 10**6])
def test_the_nearest_number_of_parameters_is_named(structure: Structure, parameters: float) -> None:
    model = language_model("llama")
    with pytest.raises(PrunerZeroError, match="choose --parameters") as caught:
        EqualWidths(0.0, structure, parameters=parameters, multiple=8).fit(model)
    nearest = int(str(caught.value).split("--parameters ")[2].split(",")[0])
    fitted = EqualWidths(0.0, structure, parameters=nearest, multiple=8).fit(model)
    assert fitted.size(model.model)[0] == nearest
    ends = {8, INNER - 8} if structure == "channels" else {1}
    assert set(fitted.kept) <= ends


@pytest.mark.parametrize(
    ("structure", "next_structure"),
    [("heads", "blocks"), ("blocks", "channels")],
)
def test_a_smaller_model_can_be_pruned_again(
    structure: str, next_structure: str, prose: str, tmp_path: Path
) -> None:
    def smaller(model: Any, kind: str, output: str) -> PruneResult:
        metric = None if kind == "blocks" else "wanda"
        options = {"structure": kind, "metric": metric, "sparsity": 0.5}
        return pruned(model, prose, output=tmp_path / output, **options)

    left = smaller(tiny_model("llama", blocks=4), structure, "compact").parameters[1]
    options: dict[str, Any] = {"calibration": [prose], "windows": 3, "seqlen": 24, "sparsity": 0.5}
    halves = [
        prune(tmp_path / "compact", "wanda", output=tmp_path / name, offload=offload, **options)
        for name, offload in (("half", False), ("offloaded", True))
    ]
    assert [result.sparsity for result in halves] == [0.5, 0.5]
    both = smaller(tmp_path / "compact", next_structure, "both")
    models = [halves[0].language_model.model] * 2 + [both.language_model.model]
    for name, expected in zip(("half", "offloaded", "both"), models, strict=True):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert loaded.num_parameters() == expected.num_parameters()
        torch.testing.assert_close(logits(loaded), logits(expected))
    assert models[0].num_parameters() == both.parameters[0] == left > both.parameters[1]


def test_units_that_the_metric_names_are_for_compare(prose: str) -> None:
    options = {"metric": "wanda@heads=0.5", "structure": None, "sparsity": None}
    with pytest.raises(PrunerZeroError, match="name them by --structure, and their share by"):
        pruned(tiny_model("llama"), prose, **options)
    with pytest.raises(PrunerZeroError, match=r"names its units: leave out @heads=0\.5"):
        pruned(tiny_model("llama"), prose, metric="wanda@heads=0.5", structure="heads")


def test_heads_whose_absence_no_configuration_could_tell_are_refused(prose: str) -> None:
    """The output projection of this family is as wide as the model, whatever its heads."""
    config = HeliumConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    with pytest.raises(PrunerZeroError, match="whose configuration cannot describe the smaller"):
        pruned(HeliumForCausalLM(config).eval(), prose, structure="heads", sparsity=0.5)


def test_the_record_and_the_card_describe_the_removed_units(prose: str, tmp_path: Path) -> None:
    result = pruned(tiny_model("llama"), prose, output=tmp_path / "out")
    before, after = result.parameters
    assert result.caption().endswith(
        f"33.33% of the weights of 6 matrices are removed, {after:,} of {before:,} parameters are "
        "left, by W * X"
    )
    record = json.loads((tmp_path / "out/pruning.json").read_text())
    assert record["parameters"] == [before, after]
    assert record["pattern"] == "33.33% of the MLP channels of every block"
    card = (tmp_path / "out/README.md").read_text()
    assert "zeros" not in card
    assert "as large and as fast" not in card
    assert f"It has {after:,} of {before:,} parameters" in card
    assert "| `mlp.down_proj` | 2 | 33.33% |" in card
