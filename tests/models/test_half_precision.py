"""A model in a dtype whose products the CPU emulates is computed in float32, and stays as it is."""

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from itertools import repeat
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.statistics import MatrixStatistics
from pruner_zero.devices import emulated_dtypes
from pruner_zero.models.block_calls import Activations, check_block_calls, record_block_calls
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.models.next_token import in_float32, next_token_losses
from pruner_zero.models.sampling import sample_windows
from pruner_zero.offload.model import placeholder
from tests.tiny_models import FUSED_EXPERTS, tiny_model, tiny_windows

HALF = (torch.bfloat16, torch.float16)
EMULATED = "pruner_zero.models.next_token.emulated_dtypes"


class _NoHalfProducts(TorchFunctionMode):
    """Fails where a product has a factor in half precision."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") in ("linear", "matmul", "__matmul__", "bmm", "addmm"):
            factors = [value for value in args if isinstance(value, Tensor)]
            assert not any(value.dtype in HALF for value in factors), func
        return func(*args, **(kwargs or {}))


@pytest.fixture
def emulating() -> Iterator[None]:
    """A CPU that emulates both half-precision dtypes, on which nobody asks it to."""
    with patch(EMULATED, lambda: HALF), _NoHalfProducts():
        yield


@pytest.fixture(params=["llama", "gpt2", "gemma3", *FUSED_EXPERTS])
def narrow(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """A model in bfloat16, whose tensors must be the same after the test."""
    model = tiny_model(request.param).bfloat16()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    yield model
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0].data_ptr()
        assert torch.equal(tensor, before[name][1])


def wide(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in float32."""
    return deepcopy(model).float()


@pytest.mark.usefixtures("emulating")
def test_losses_are_those_of_the_model_in_float32(narrow: PreTrainedModel) -> None:
    tokens = tiny_windows()
    with torch.no_grad():
        losses = next_token_losses(narrow, tokens)
        assert torch.equal(losses, next_token_losses(wide(narrow), tokens))


@pytest.mark.usefixtures("emulating")
def test_gradients_are_those_of_the_model_in_float32(narrow: PreTrainedModel) -> None:
    tokens, kinds = tiny_windows(), ("G", "O")
    expected = wide(narrow)
    ours = collect_gradients(narrow, find_matrices(narrow), tokens, kinds)
    theirs = collect_gradients(expected, find_matrices(expected), tokens, kinds)
    assert all(parameter.grad is None for parameter in narrow.parameters())
    for name, values in ours.items():
        assert all(torch.equal(value, theirs[name][kind]) for kind, value in values.items())


def first_block(
    model: PreTrainedModel, tokens: Tensor
) -> tuple[dict[str, MatrixStatistics], Activations]:
    """The statistics and the outputs of the first block."""
    calls = record_block_calls(model, tokens)
    matrices = [matrix for matrix in find_matrices(model) if matrix.block == 0]
    return collect_inputs(find_blocks(model)[0], matrices, calls.hidden, calls.arguments[0])


@pytest.mark.usefixtures("emulating")
def test_blocks_are_those_of_the_model_in_float32(narrow: PreTrainedModel) -> None:
    tokens = tiny_windows()
    check_block_calls(narrow, tokens)
    statistics, outputs = first_block(narrow, tokens)
    theirs, states = first_block(wide(narrow), tokens)
    assert all(torch.equal(*pair) for pair in zip(outputs, states, strict=True))
    for name, values in statistics.items():
        assert torch.equal(values["X"], theirs[name]["X"])


@pytest.mark.usefixtures("emulating")
def test_text_is_that_of_the_model_in_float32() -> None:
    model = tiny_model("llama").bfloat16()
    texts = [
        sample_windows(
            each, [repeat(((1,),)) for _ in range(3)], 9, torch.Generator().manual_seed(0)
        )
        for each in (model, wide(model))
    ]
    assert torch.equal(*texts)


def test_an_error_inside_leaves_the_dtype_as_it_was() -> None:
    model, dtypes = nn.Linear(3, 2).bfloat16(), []
    with patch(EMULATED, lambda: HALF), suppress(ValueError), in_float32(model), in_float32(model):
        dtypes.append(model.weight.dtype)
        raise ValueError("inside")
    assert [*dtypes, model.weight.dtype] == [torch.float32, torch.bfloat16]


def test_other_cpus_and_dtypes_and_placeholders_are_left_alone() -> None:
    model = nn.Linear(3, 2).bfloat16()
    with patch(EMULATED, tuple), in_float32(model):
        assert model.weight.dtype == torch.bfloat16
    model.weight.data = placeholder(model.weight)
    with patch(EMULATED, lambda: HALF), in_float32(model):
        assert model.weight.dtype == torch.bfloat16
        assert model.bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("machine", "capability", "instructions", "expected"),
    [
        ("x86_64", "AVX2", {}, HALF),
        ("AMD64", "DEFAULT", {}, HALF),
        ("x86_64", "AVX512", {}, (torch.float16,)),
        ("x86_64", "AVX512", {"avx512_fp16": True}, ()),
        ("x86_64", "AVX512_VNNI", {"amx_fp16": True}, ()),
        ("arm64", "DEFAULT", {}, ()),
    ],
)
def test_what_a_processor_emulates(
    machine: str, capability: str, instructions: dict[str, bool], expected: tuple[torch.dtype, ...]
) -> None:
    with (
        patch("platform.machine", lambda: machine),
        patch("torch.backends.cpu.get_cpu_capability", lambda: capability),
        patch("torch.cpu.get_capabilities", lambda: instructions, create=True),
    ):
        assert tuple(emulated_dtypes()) == expected
