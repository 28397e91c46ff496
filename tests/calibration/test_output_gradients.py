"""O: the gradients at the outputs of a matrix, without a gradient of any weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.text.corpus import Corpus
from pruner_zero.text.token_windows import random_windows
from tests.calibration.reference import plain_inputs, plain_output_gradients
from tests.calibration.test_gradients import every_architecture
from tests.conftest import save_sharded
from tests.text.refusals import refusal
from tests.tiny import FOX, tiny_tokenizer
from tests.tiny_models import VOCABULARY, tiny_model, tiny_windows


def outputs(model: PreTrainedModel, windows: Tensor) -> dict[str, Tensor]:
    statistics = collect_gradients(model, find_matrices(model), windows, ["O"])
    assert all(list(of_matrix) == ["O"] for of_matrix in statistics.values())
    return {name: of_matrix["O"] for name, of_matrix in statistics.items()}


def distinct_windows(windows: int = 3, tokens: int = 11) -> Tensor:
    """Random windows in which no token occurs twice."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(VOCABULARY, generator=generator)[:tokens] for _ in range(windows)]
    return torch.stack(rows)


@every_architecture
def test_o_is_the_solution_from_the_gradients_of_weights(architecture: str) -> None:
    model, windows = tiny_model(architecture), distinct_windows()
    columns = outputs(model, windows)
    expected = plain_output_gradients(model, windows)
    for matrix in find_matrices(model):
        column = columns[matrix.name]
        assert column.shape == (matrix.weight.shape[0], 1)
        assert column.dtype == torch.float32
        reference = expected[matrix.name].float()
        scale = float(reference.max()) or 1.0
        torch.testing.assert_close(column, reference, rtol=1e-3, atol=1e-3 * scale)


def test_one_token_gives_a_gradient_of_rank_one() -> None:
    # The loss of two tokens is of the prediction at the first token, so only the first token has a
    # gradient; O is the mean over both tokens.
    model, windows = tiny_model("llama"), distinct_windows(1, 2)
    statistics = collect_gradients(model, find_matrices(model), windows, ["G", "O"])
    inputs = plain_inputs(model, windows)
    for name, of_matrix in statistics.items():
        X = torch.cat(inputs.rows[name])[:1].abs().float()
        torch.testing.assert_close(2**0.5 * of_matrix["O"] * X, of_matrix["G"])


def test_the_product_of_o_and_x_estimates_g_as_a_whole() -> None:
    model, windows = tiny_model("llama"), tiny_windows(16, 11)
    matrices = find_matrices(model)
    statistics = collect_gradients(model, matrices, windows, ["G", "O"])
    inputs = plain_inputs(model, windows)
    ratios = []
    for matrix in matrices:
        X = inputs.X(matrix.name, matrix.weight.shape[1], len(windows))
        estimate, G = statistics[matrix.name]["O"] * X, statistics[matrix.name]["G"]
        ratios.append(float(estimate.square().sum() / G.square().sum()))
    assert 0.7 < sum(ratios) / len(ratios) < 1.4


@contextmanager
def no_weight_learns(model: nn.Module) -> Iterator[list[type]]:
    """Fails where a parameter needs or gets a gradient in a pass; lists the modules that ran."""
    ran: list[type] = []

    def check(module: nn.Module, *_: object) -> None:
        for name, parameter in model.named_parameters():
            assert not parameter.requires_grad, name
        ran.append(type(module))

    forward = [module.register_forward_hook(check) for module in model.modules()]
    yield ran
    for handle in forward:
        handle.remove()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None, name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_no_weight_needs_a_gradient(architecture: str) -> None:
    model = tiny_model(architecture)
    with no_weight_learns(model) as ran:
        columns = outputs(model, tiny_windows())
    assert ran
    assert all(column.any() for name, column in columns.items() if "experts" not in name)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for matrix in find_matrices(model):
        # No tensor as large as a weight is kept.
        assert columns[matrix.name].untyped_storage().nbytes() == 4 * matrix.weight.shape[0]


def test_no_weight_of_an_offloaded_model_needs_a_gradient(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "model")
    windows = random_windows(Corpus("fox", FOX), tiny_tokenizer(), 3, 11, 0)
    offloaded, loaded = load_offloaded(folder), load_model(folder)
    for module in offloaded.model.modules():
        module.requires_grad_(False)
    store = open_store(offloaded, windows, folder=tmp_path / "offloaded")
    with no_weight_learns(offloaded.model) as ran:
        calibrate(offloaded, windows, ["O"], store)
    assert ran
    assert not store.has("G")
    expected = outputs(loaded.model, windows.tokens)
    for block in range(3):
        for name, column in store.read("O", block).items():
            assert torch.equal(column, expected[name])


def test_g_collected_beside_o_stays_the_same() -> None:
    model, windows = tiny_model("llama"), tiny_windows()
    matrices = find_matrices(model)
    alone = collect_gradients(model, matrices, windows, ["G"])
    beside = collect_gradients(model, matrices, windows, ["O", "G"])
    only = collect_gradients(model, matrices, windows, ["O"])
    for name, of_matrix in beside.items():
        assert torch.equal(of_matrix["G"], alone[name]["G"])
        torch.testing.assert_close(of_matrix["O"], only[name]["O"])


def test_a_model_may_write_to_the_output_of_its_first_matrix() -> None:
    model, windows = tiny_model("llama"), tiny_windows()
    expected = outputs(model, windows)
    query = model.model.layers[0].self_attn.q_proj
    handle = query.register_forward_hook(lambda _module, _inputs, output: output.mul_(1.0))
    # This hook runs after the hook of the statistic, as the block itself would.
    query._forward_hooks.move_to_end(handle.id)
    columns = outputs(model, windows)
    for name in expected:
        torch.testing.assert_close(columns[name], expected[name])


@pytest.mark.fault("a gradient or a score that is NaN or infinite")
def test_a_gradient_that_is_no_number_names_its_matrix() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    message = refusal(lambda: outputs(model, tiny_windows()))
    assert "is not finite" in message


def test_experts_whose_products_are_not_observed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pruner_zero.calibration.inputs._Products._products", ())
    model = tiny_model("mixtral")
    message = refusal(lambda: outputs(model, tiny_windows()))
    assert "choose a metric without O" in message
