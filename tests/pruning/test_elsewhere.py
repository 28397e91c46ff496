"""`prune` of a model that is elsewhere: tensors follow it, and the same weights are pruned."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pruner_zero import prune
from pruner_zero.devices import CPU
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.models.placement import place_model
from pruner_zero.offload import model as offloaded
from tests.elsewhere import HERE, THERE, Elsewhere, elsewhere
from tests.models.test_placement import BOTH, place_block_after_block
from tests.pruning.conftest import language_model

METHODS: dict[str, dict[str, Any]] = {
    "a statistic by forward": {"metric": "wanda"},
    "gradients and an operator over the matrix": {"metric": "pruner-zero"},
    "the Hessian": {"metric": "sparsegpt"},
    "N:M": {"metric": "ria", "pattern": "2:4", "sparsity": None},
    "wide N:M, swept": {
        "metric": "wanda",
        "pattern": "16:32",
        "sparsity": None,
        "update": "obs",
        "exclude": ("*.down_proj",),
    },
    "all matrices at once": {"metric": "W * G", "scope": "global"},
    "one matrix at once": {"metric": "wanda", "scope": "matrix"},
    "an update": {"metric": "wanda", "update": "obs"},
    "channels": {"metric": "wanda", "structure": "channels"},
    "heads": {"metric": "wanda", "structure": "heads"},
}


def pruned(model: LanguageModel, prose: str, cache: Path, **method: Any) -> dict[str, Tensor]:
    options = {"sparsity": 0.5, "windows": 3, "seqlen": 24, "cache": cache, **method}
    prune(model, calibration=[prose], **options)
    return {matrix.name: matrix.weight.detach().cpu() for matrix in find_matrices(model.model)}


def check_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums may round differently elsewhere, which may change the masks of a few weights."""
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        same = (actual[name] == 0) == (weight == 0)
        assert same.float().mean() > 0.99, name
        torch.testing.assert_close(actual[name][same], weight[same], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_kind_of_method_prunes_elsewhere_as_here(
    method: dict[str, Any], prose: str, tmp_path: Path
) -> None:
    expected = pruned(language_model("llama"), prose, tmp_path / "here", **method)
    model = language_model("llama")
    with elsewhere():
        model.model.to(HERE)
        actual = pruned(model, prose, tmp_path / "elsewhere", **method)
        assert {matrix.weight.device for matrix in find_matrices(model.model)} == {HERE}
    check_close(actual, expected)


def test_blocks_of_a_model_on_two_devices_go_as_on_one(prose: str, tmp_path: Path) -> None:
    method = {"structure": "blocks", "sparsity": 0.25}
    expected = pruned(language_model("llama", blocks=4), prose, tmp_path / "here", **method)
    model = language_model("llama", blocks=4)
    with elsewhere():
        size = {id(parameter): parameter.nbytes for parameter in model.model.parameters()}
        half = sum(
            size[id(p)] for block in find_blocks(model.model)[2:] for p in block.parameters()
        )
        place_model(model.model, BOTH, {HERE: sum(size.values()) - half, THERE: half}.__getitem__)
        places = [next(block.parameters()).device for block in find_blocks(model.model)]
        assert places == [HERE, HERE, THERE, THERE]
        actual = pruned(model, prose, tmp_path / "elsewhere", **method)
    assert {matrix.block for matrix in find_matrices(model.model)} == {0, 1, 2}
    check_close(actual, expected)


@pytest.mark.parametrize("metric", ["wanda@global", "sparsegpt", "pruner-zero+obs"])
def test_a_model_on_two_devices_is_pruned_as_on_one(
    metric: str, prose: str, tmp_path: Path
) -> None:
    expected = pruned(language_model("llama"), prose, tmp_path / "here", metric=metric)
    model = language_model("llama")
    with elsewhere():
        place_block_after_block(model.model)
        actual = pruned(model, prose, tmp_path / "elsewhere", metric=metric)
    places = [next(block.parameters()).device for block in find_blocks(model.model)]
    assert places == [HERE, THERE]
    check_close(actual, expected)


def test_a_model_saved_on_one_device_loads_on_another(prose: str, tmp_path: Path) -> None:
    model = language_model("llama")
    with elsewhere():
        model.model.to(HERE)
        output = tmp_path / "out"
        result = prune(
            model, "wanda", sparsity=0.5, calibration=[prose], windows=3, seqlen=24, output=output
        )
        assert result.provenance["device"] == str(HERE)
    loaded = load_model(output, device="cpu")
    for matrix, original in zip(
        find_matrices(loaded.model), find_matrices(model.model), strict=True
    ):
        assert torch.equal(matrix.weight, original.weight.cpu())


@pytest.mark.parametrize("metric", ["wanda", "pruner-zero", "sparsegpt", "wanda@global"])
def test_a_model_on_disk_is_read_to_the_device_block_by_block(
    metric: str,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {
        "sparsity": 0.5,
        "windows": 3,
        "seqlen": 24,
        "calibration": text_file,
    }
    prune(llama_folder, metric, output=tmp_path / "here", cache=tmp_path / "a", **options)
    # Parameters that are not loaded are in main memory, and can become others in place.
    bare = offloaded.placeholder
    monkeypatch.setattr(offloaded, "placeholder", lambda like: Elsewhere(bare(like), CPU))
    monkeypatch.setattr("pruner_zero.devices.present_devices", lambda: [HERE, CPU])
    with elsewhere():
        result = prune(
            llama_folder,
            metric,
            output=tmp_path / "there",
            cache=tmp_path / "b",
            offload=True,
            device=str(HERE),
            **options,
        )
    assert result.provenance["device"] == str(HERE)
    actual, expected = (
        {
            matrix.name: matrix.weight
            for matrix in find_matrices(load_model(folder, device="cpu").model)
        }
        for folder in (tmp_path / "there", tmp_path / "here")
    )
    check_close(actual, expected)


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on the pretended device, as Metal does."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Elsewhere) and result.dtype == torch.float64:
            raise TypeError(f"{func} makes a tensor of float64, which the device does not have")
        return result


@pytest.mark.parametrize("structure", ["channels", "heads"])
def test_units_are_chosen_on_a_device_without_float64(
    structure: str, prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS[structure]
    expected = pruned(language_model("llama"), prose, tmp_path / "here", **method)
    module = import_module("pruner_zero.structure.units")
    monkeypatch.setattr(module, "where_float64_is", Tensor.cpu, raising=False)
    model = language_model("llama")
    with elsewhere():
        model.model.to(HERE)
        refusing: Any = WithoutFloat64
        with refusing():
            actual = pruned(model, prose, tmp_path / "elsewhere", **method)
        assert {matrix.weight.device for matrix in find_matrices(model.model)} == {HERE}
    check_close(actual, expected)
