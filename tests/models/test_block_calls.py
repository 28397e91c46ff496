"""Blocks run one by one give what the model gives, whatever it hands to them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import (
    BlockCalls,
    blocks_recomputed,
    check_block_calls,
    first_token_apart,
    record_block_calls,
    run_batch,
    run_block,
    run_blocks,
    run_windows,
)
from pruner_zero.models.load import load_model
from pruner_zero.models.matrices import find_blocks
from pruner_zero.offload.model import load_offloaded
from tests.models.expected import FINAL_NORM
from tests.tiny_models import (
    ARCHITECTURES,
    SLIDING_WINDOW,
    first_token_constant,
    tiny_model,
    tiny_windows,
)

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def through_blocks(model: nn.Module, calls: BlockCalls, window: int) -> Tensor:
    hidden = calls.hidden[window]
    for block, arguments in zip(find_blocks(model), calls.arguments, strict=True):
        hidden = run_block(block, hidden, arguments[window])
    return hidden


def test_windows_of_other_arguments_are_not_run_in_one_call() -> None:
    calls = record_block_calls(model := tiny_model("llama"), tiny_windows(2, 12))
    hidden, block = list(calls.hidden), find_blocks(model)[0]
    first, (args, kwargs) = calls.arguments[0]
    cos, sin = kwargs["position_embeddings"]
    arguments = [first, (args, {**kwargs, "position_embeddings": (sin, cos)})]
    apart = torch.cat([run_block(block, *c) for c in zip(hidden, arguments, strict=True)])
    assert torch.equal(run_batch(block, hidden, arguments), apart)
    assert not torch.allclose(run_batch(block, hidden, [first, first]), apart)


@pytest.mark.parametrize(("native", "tolerance"), [(False, 1e-5), (True, 0.05)])
@every_architecture
@torch.no_grad()
def test_fast_runs_of_every_block_give_each_window_in_float32(
    architecture: str, native: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.models.next_token.has_fast_bfloat16", lambda _: native)
    monkeypatch.setattr("pruner_zero.models.block_calls._FAST_TOKENS", 2 * 12 + 5)
    model, windows = tiny_model(architecture), tiny_windows(5, 12)
    expected, calls = record_block_calls(model, windows), record_block_calls(model, windows)
    hidden = calls.hidden
    for block, arguments in zip(find_blocks(model), calls.arguments, strict=True):
        hidden = run_windows(block, hidden, arguments, fast=True)
    assert len(hidden) == len(windows)
    for window, output in enumerate(hidden):
        apart = through_blocks(model, expected, window)
        assert (output.dtype, output.shape) == (torch.float32, apart.shape)
        # Of most tokens: rounding may send a token to another expert.
        errors = (output - apart).norm(dim=-1) / apart.norm(dim=-1)
        assert errors.median() <= tolerance


@every_architecture
@torch.no_grad()
def test_running_every_block_gives_the_model_s_own_logits(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows()
    assert windows.shape[1] > SLIDING_WINDOW
    check_block_calls(model, windows)
    calls = record_block_calls(model, windows)
    assert len(calls.hidden) == len(windows)
    norm = model.get_submodule(FINAL_NORM.get(architecture, "model.norm"))
    for index, window in enumerate(windows):
        logits = model.get_output_embeddings()(norm(through_blocks(model, calls, index)))
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        assert torch.equal(logits, model(window[None], use_cache=False).logits)


@every_architecture
def test_recording_leaves_the_model_as_it_was(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        before = model(windows).logits
        record_block_calls(model, windows)
        after = model(windows).logits
    assert torch.equal(after, before)
    for name, module in model.named_modules():
        assert set(vars(module)) == attributes[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_recording_that_fails_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    first, second = find_blocks(model)
    first.forward = forward = first.forward  # as accelerate does
    with pytest.raises(IndexError):
        record_block_calls(model, torch.full((1, 4), 10_000))
    record_block_calls(model, tiny_windows())
    assert vars(first)["forward"] is forward
    assert "forward" not in vars(second)
    assert not first._forward_hooks


@every_architecture
def test_arguments_that_windows_share_are_kept_once(architecture: str) -> None:
    # A mask or rotary table for each of 128 windows and 32 blocks would not fit in memory.
    calls = record_block_calls(tiny_model(architecture), tiny_windows(4))
    assert not any(hidden.requires_grad for hidden in calls.hidden)
    for windows in calls.arguments:
        first, *later = [[*map(id, tree_leaves(arguments))] for arguments in windows]
        assert all(leaves == first for leaves in later)


@every_architecture
def test_recomputed_blocks_have_the_gradients_of_a_plain_backward_pass(architecture: str) -> None:
    windows, gradients, outputs = tiny_windows(2), [], []
    for recompute in (False, True):
        model = tiny_model(architecture)
        with blocks_recomputed(model) if recompute else nullcontext():
            hidden, _ = run_blocks(model, windows)
            hidden.square().mean().backward()
        outputs.append(hidden.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert torch.equal(*outputs)
    assert sum(gradient is not None for gradient in gradients[0].values()) > 5
    for name, gradient in gradients[0].items():
        again = gradients[1][name]
        assert (gradient is None) == (again is None)
        if gradient is not None and again is not None:
            torch.testing.assert_close(again, gradient, msg=name)


def test_only_one_block_is_in_the_graph_at_a_time() -> None:
    """The tensors that are kept for the backward pass are the inputs of the blocks."""
    model, windows = tiny_model("llama", blocks=4), tiny_windows(1)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_blocks(model, windows)
        plain = len(kept)
        kept.clear()
        with blocks_recomputed(model):
            run_blocks(model, windows)
    assert len(kept) < plain / 10


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_what_blocks_give_for_the_first_token_gets_no_gradient(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_windows()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        run_blocks(model, windows)[0].square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    with first_token_apart(model):
        apart = gradients()
    with first_token_constant(model):
        expected = gradients()
    for name, gradient in apart.items():
        torch.testing.assert_close(gradient, expected[name])
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients().items())
    assert any(not torch.allclose(gradient, before[name]) for name, gradient in apart.items())


either_place = pytest.mark.parametrize("load", [load_model, load_offloaded])
Call = Callable[..., Any]


class Loop(nn.ModuleList):
    """Blocks in the place of which a model calls others, made of them by `between`."""

    between: Callable[[Sequence[Call]], Sequence[Call]]

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return self.between(part) if isinstance(index, slice) else part


def twice_as_much(blocks: Sequence[Call]) -> list[Call]:
    """The model changes the output of each block before the next one gets it."""
    return [lambda *args, run=run, **kwargs: 2 * run(*args, **kwargs) for run in blocks]


def passed_on(blocks: Sequence[Call]) -> list[Call]:
    """Another argument of the blocks depends on the output of the block before."""
    sums = [torch.zeros(())]

    def call(block: Call, hidden: Tensor, position_embeddings: Any, **rest: Any) -> Any:
        cos, sin = position_embeddings
        output = block(hidden, position_embeddings=(cos + sums[-1], sin), **rest)
        sums.append(output.abs().sum())
        return output

    return [partial(call, block) for block in blocks]


def failing_apart(blocks: Sequence[Any]) -> list[Call]:
    """A block fails where another one than the model calls it."""
    of_model: list[bool] = []

    def check(_block: nn.Module, _inputs: object) -> None:
        if not of_model:
            raise ValueError("a block before was not run")

    def second(*args: Any, **kwargs: Any) -> Any:
        of_model.append(True)
        output = blocks[1](*args, **kwargs)
        of_model.clear()
        return output

    blocks[1].register_forward_pre_hook(check)
    return [blocks[0], second]


@either_place
@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda blocks: 2 * [*blocks], id="two rounds"),
        pytest.param(lambda blocks: [*blocks][::-1], id="backwards"),
        pytest.param(lambda blocks: [blocks[0]] * 2, id="one block alone"),
        pytest.param(lambda blocks: [run for run in blocks for _ in range(2)], id="twice each"),
        twice_as_much,
        passed_on,
        failing_apart,
    ],
)
def test_blocks_that_do_not_simply_follow_each_other_are_refused(
    between: Any, load: Any, llama_folder: Path
) -> None:
    plain, odd = (load(llama_folder) for _ in range(2))
    for loaded, calling in ((plain, list), (odd, between)):
        layers = loaded.model.model.layers = Loop(loaded.model.model.layers)
        layers.between = calling
    plain.block_calls(tiny_windows())
    with pytest.raises(PrunerZeroError, match="blocks of the llama family cannot be run one after"):
        odd.block_calls(tiny_windows())


@either_place
def test_a_lack_of_memory_is_not_taken_for_an_odd_family(load: Any, llama_folder: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded = load(llama_folder)
    find_blocks(loaded.model)[0].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        loaded.block_calls(tiny_windows())
