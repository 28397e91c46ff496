"""X, XᵀX and the token count equal a computation by hand from the inputs that hooks recorded."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruner_zero.calibration.inputs import InputSums, collect_inputs
from pruner_zero.calibration.statistics import InputStatistic, Kind, MatrixStatistics, select
from pruner_zero.models.block_calls import record_block_calls, run_block
from pruner_zero.models.matrices import Matrix, find_blocks, find_matrices
from tests.calibration.reference import plain_inputs
from tests.text.refusals import refusal
from tests.tiny_models import ARCHITECTURES, EXPERTS, FUSED_EXPERTS, tiny_model, tiny_windows

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def block_by_block(
    model: PreTrainedModel, windows: Tensor, *kinds: Kind
) -> Iterator[tuple[list[Matrix], dict[str, MatrixStatistics]]]:
    calls = record_block_calls(model, windows)
    hidden = calls.hidden
    for index, block in enumerate(find_blocks(model)):
        matrices = [matrix for matrix in find_matrices(model) if matrix.block == index]
        statistics, hidden = collect_inputs(block, matrices, hidden, calls.arguments[index], kinds)
        yield matrices, statistics


@every_architecture
def test_x_gram_and_tokens_are_those_of_the_recorded_inputs(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows(3)
    inputs = plain_inputs(model, windows)
    for matrices, statistics in block_by_block(model, windows, "gram", "tokens"):
        assert list(statistics) == [matrix.name for matrix in matrices]
        for matrix in matrices:
            width = matrix.weight.shape[1]
            values = statistics[matrix.name]
            assert values["X"].shape == (1, width)
            assert values["X"].dtype == values["gram"].dtype == torch.float32
            expected = inputs.X(matrix.name, width, len(windows))
            torch.testing.assert_close(values["X"], expected, rtol=1e-4, atol=1e-5)
            expected = inputs.gram(matrix.name, width, len(windows))
            torch.testing.assert_close(values["gram"], expected, rtol=1e-4, atol=1e-4)
            assert values["tokens"].shape == (1, 1)
            assert values["tokens"].item() == inputs.tokens(matrix.name, width)


@every_architecture
def test_x_is_the_same_without_gram_whose_diagonal_is_twice_its_square(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows(2)
    with_gram = block_by_block(model, windows, "gram")
    for (_, plain), (_, extended) in zip(block_by_block(model, windows), with_gram, strict=True):
        for name, values in extended.items():
            assert "gram" not in plain[name]
            assert torch.equal(plain[name]["X"], values["X"])
            torch.testing.assert_close(values["gram"], values["gram"].T)
            torch.testing.assert_close(values["gram"].diagonal(), 2 * values["X"][0].square())


@every_architecture
@torch.no_grad()
def test_the_outputs_are_those_of_the_block(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows()
    calls = record_block_calls(model, windows)
    hidden = calls.hidden
    for index, block in enumerate(find_blocks(model)):
        matrices = [matrix for matrix in find_matrices(model) if matrix.block == index]
        arguments = calls.arguments[index]
        _, outputs = collect_inputs(block, matrices, hidden, arguments)
        for inputs, rest, output in zip(hidden, arguments, outputs, strict=True):
            # Experts run one by one here and all at once otherwise: sums in another order.
            plain = run_block(block, inputs, rest)
            torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-5)
        hidden = outputs


@pytest.mark.parametrize(
    ("architecture", "together"),
    [
        ("llama", ("q_proj", "k_proj", "v_proj")),
        ("llama", ("gate_proj", "up_proj")),
        ("opt", ("q_proj", "k_proj", "v_proj")),
        ("llama4", ("gate_proj", "up_proj")),
    ],
)
def test_matrices_with_the_same_inputs_share_one_tensor(
    architecture: str, together: tuple[str, ...]
) -> None:
    # A Gram matrix of 8192 channels weighs 256 MB; there are seven matrices in a block.
    for _, statistics in block_by_block(tiny_model(architecture), tiny_windows(), "gram"):
        shared = [values for name, values in statistics.items() if name.endswith(together)]
        for kind in ("X", "gram"):
            assert len({values[kind].data_ptr() for values in shared}) == 1
        if architecture == "llama":
            distinct = {values["X"].data_ptr() for values in statistics.values()}
            assert len(distinct) == 4  # attention, its output, the gated layer, its output


@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_an_expert_that_no_token_reaches_has_x_zero(architecture: str) -> None:
    model = tiny_model(architecture)
    windows = tiny_windows(1, 2)  # two tokens with at most two experts each
    *_, (matrices, statistics) = block_by_block(model, windows, "gram")
    experts = [matrix for matrix in matrices if matrix.expert is not None]
    silent = [matrix for matrix in experts if not statistics[matrix.name]["X"].any()]
    assert 2 * (EXPERTS - 4) <= len(silent) < len(experts)
    for matrix in silent:
        values, width = statistics[matrix.name], matrix.weight.shape[1]
        assert values["X"].shape == (1, width)
        assert torch.equal(values["gram"], torch.zeros(width, width))


@pytest.mark.parametrize("architecture", FUSED_EXPERTS)
def test_some_experts_of_a_mixture_can_be_asked_for(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows(1, 2)
    calls = record_block_calls(model, windows)
    hidden = [run_block(find_blocks(model)[0], calls.hidden[0], calls.arguments[0][0])]
    wanted = find_matrices(model, include=["*.1.*experts.down_proj[5]"])
    statistics, _ = collect_inputs(find_blocks(model)[1], wanted, hidden, calls.arguments[1])
    assert list(statistics) == [wanted[0].name]


@every_architecture
def test_no_hook_stays_and_experts_run_as_before(architecture: str) -> None:
    model = tiny_model(architecture)
    before = getattr(model.config, "_experts_implementation", None)
    for _ in block_by_block(model, tiny_windows(1)):
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert getattr(model.config, "_experts_implementation", None) == before


def test_bfloat16_inputs_are_summed_in_fp32() -> None:
    model, windows = tiny_model("llama").bfloat16(), tiny_windows(8)
    inputs = plain_inputs(model, windows)
    for matrices, statistics in block_by_block(model, windows, "gram"):
        for matrix in matrices:
            width = matrix.weight.shape[1]
            expected = inputs.X(matrix.name, width, len(windows))
            assert statistics[matrix.name]["X"].dtype == torch.float32
            torch.testing.assert_close(statistics[matrix.name]["X"], expected, rtol=1e-5, atol=1e-6)


class OddMixture(nn.Module):
    """A block that multiplies its experts in a way that no hook observes."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.stack = nn.Parameter(torch.ones(3, 4, 4))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.einsum("btw,ewv->btv", hidden_states, self.experts.stack)


def test_experts_that_cannot_be_observed_are_refused_and_not_taken_for_idle() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([OddMixture()])
    hidden = [torch.ones(1, 2, 4)]
    matrices = find_matrices(model)
    assert len(matrices) == 3
    message = refusal(lambda: collect_inputs(find_blocks(model)[0], matrices, hidden, [((), {})]))
    assert "layers.0.experts.stack" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1024, 2500])
def test_a_wide_gram_is_exact_whatever_the_dtype_of_its_inputs(
    width: int, dtype: torch.dtype
) -> None:
    linear = nn.Linear(width, 3, bias=False, dtype=dtype)
    precision = torch.get_float32_matmul_precision()
    rows = torch.randn(2, 7, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    sums = InputSums(select(InputStatistic, ["gram"]))
    for row in rows:
        sums.add("wide", row)
    matrix = Matrix("wide", 0, linear.get_parameter("weight"), "wide")
    gram = sums.result([matrix], len(rows))["wide"]["gram"]
    exact = rows.double().flatten(0, 1)
    torch.testing.assert_close(gram.double(), exact.T @ exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gram, gram.T)
    assert torch.get_float32_matmul_precision() == precision
