"""A model over several devices: where each block is, and that hidden states move along."""

from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.devices import CPU, Devices
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import record_block_calls
from pruner_zero.models.matrices import find_blocks, find_matrices, size_of
from pruner_zero.models.next_token import next_token_loss
from pruner_zero.models.placement import devices_needed, place_model, spread_blocks
from tests.elsewhere import HERE, THERE, elsewhere
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_windows

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6)
ROOM = st.lists(st.integers(0, 20), min_size=1, max_size=3)
BOTH = Devices((HERE, THERE), spread=True)


def fullest(chosen: tuple[int, ...], blocks: list[int], free: list[int], outside: int) -> float:
    """The largest share of a device that is taken, infinite where a device has no room."""
    held = [outside, *[0] * (len(free) - 1)]
    for size, place in zip(blocks, chosen, strict=True):
        held[place] += size
    shares = zip(held, free, strict=True)
    return max(used / room if room else float("inf") if used else 0.0 for used, room in shares)


@given(SIZES, ROOM, st.integers(0, 5))
def test_no_other_ranges_leave_the_fullest_device_emptier(
    blocks: list[int], free: list[int], outside: int
) -> None:
    every = combinations_with_replacement(range(len(free)), len(blocks))
    best = min(fullest(chosen, blocks, free, outside) for chosen in every)
    if best > 1:
        with pytest.raises(PrunerZeroError, match="give --device more of them"):
            spread_blocks(blocks, free, outside)
        return
    chosen = spread_blocks(blocks, free, outside)
    assert chosen == sorted(chosen)
    assert len(chosen) == len(blocks)
    assert fullest(tuple(chosen), blocks, free, outside) <= best + 0.01 + 1e-6


def place_block_after_block(model: nn.Module) -> None:
    """The first block HERE and the second THERE: neither device has room for more."""
    whole, second = (size_of(module)[1] for module in (model, find_blocks(model)[1]))
    place_model(model, BOTH, {HERE: whole - second, THERE: second}.__getitem__)
    places = [next(block.parameters()).device for block in find_blocks(model)]
    assert places == [HERE, THERE]


def test_equal_blocks_on_equal_devices_are_shared_out_equally() -> None:
    assert spread_blocks([5] * 6, [100, 100, 100]) == [0, 0, 1, 1, 2, 2]
    assert spread_blocks([5] * 6, [100, 100], outside=10) == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("total", "count"), [(0, 1), (50, 1), (51, 2), (100, 2), (999, 3)])
def test_a_model_takes_as_few_devices_as_hold_twice_its_weights(total: int, count: int) -> None:
    assert devices_needed(total, [100, 100, 100]) == count


# The products of Falcon and the counts of mixtures need more of a device than can be pretended.
PRETENDED = sorted({*ARCHITECTURES} - {"falcon", "mixtral", "qwen3_moe", "gpt_oss"})


@pytest.mark.parametrize("architecture", PRETENDED)
def test_a_model_on_two_devices_computes_what_it_does_on_one(architecture: str) -> None:
    model, window = tiny_model(architecture), tiny_windows()[:1]
    with torch.no_grad():
        expected = float(next_token_loss(model, window))
    with elsewhere(), torch.no_grad():
        place_block_after_block(model)
        assert model.get_input_embeddings().weight.device == HERE
        loss = next_token_loss(model, window)
        assert loss.device == HERE
        assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("room", "places"), [(2.1, {HERE}), (1.1, {HERE, THERE})])
def test_a_model_is_cut_only_where_the_first_device_is_too_small(
    room: float, places: set[torch.device]
) -> None:
    model = tiny_model("llama")
    _, size = size_of(model)
    with elsewhere():
        place_model(model, Devices((HERE, THERE)), lambda _: int(room * size))
        assert {parameter.device for parameter in model.parameters()} == places


def test_a_model_can_be_placed_again() -> None:
    model, window = tiny_model("llama"), tiny_windows()[:1]
    with elsewhere(), torch.no_grad():
        for devices in (BOTH, Devices((THERE, HERE), spread=True), Devices((THERE,)), Devices()):
            place_model(model, devices, lambda _: 1 << 20)
            loss = next_token_loss(model, window)
            assert loss.device == devices.first
    assert {parameter.device for parameter in model.parameters()} == {CPU}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_statistics_lie_on_the_device_of_their_block_and_equal_those_of_one_device(
    architecture: str,
) -> None:
    model, windows = tiny_model(architecture), tiny_windows()

    def inputs() -> dict[str, Tensor]:
        calls = record_block_calls(model, windows)
        hidden, collected = calls.hidden, {}
        for index, block in enumerate(find_blocks(model)):
            matrices = [matrix for matrix in find_matrices(model) if matrix.block == index]
            arguments = calls.arguments[index]
            statistics, hidden = collect_inputs(block, matrices, hidden, arguments, ["gram"])
            for matrix in matrices:
                values = statistics[matrix.name]
                assert values["gram"].device == values["X"].device == matrix.weight.device
                collected[matrix.name] = torch.cat([values["X"], values["gram"]]).cpu()
        return collected

    def gradients() -> dict[str, Tensor]:
        statistics = collect_gradients(model, find_matrices(model), windows)
        return {name: values["G"].cpu() for name, values in statistics.items()}

    expected = {"X": inputs(), "G": gradients()}
    with elsewhere():
        place_block_after_block(model)
        actual = {"X": inputs(), "G": gradients()}
    for kind, tensors in expected.items():
        for name, value in tensors.items():
            torch.testing.assert_close(actual[kind][name], value, rtol=1e-4, atol=1e-5)
