"""Blocks run one by one give what the model gives, whatever it hands to them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from pruner_zero.models.language_model import LanguageModel
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
        first, *later = [tensors(arguments) for arguments in windows]
        for leaves in later:
            assert all(leaf is same for leaf, same in zip(leaves, first, strict=True))


def tensors(arguments: object) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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


def test_bfloat16_runs_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner_zero.models.next_token.emulated_dtypes", lambda: ())
    model, windows = tiny_model("qwen3").bfloat16(), tiny_windows()
    calls = record_block_calls(model, windows)
    with torch.no_grad():
        assert through_blocks(model, calls, 0).dtype == torch.bfloat16


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


def test_a_model_that_never_reaches_its_blocks_is_a_defect() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

        def forward(self, window: Tensor, use_cache: bool) -> Tensor:
            del use_cache
            return window

    with pytest.raises(RuntimeError, match="Odd finished without"):
        record_block_calls(Odd(), tiny_windows())


@every_architecture
def test_blocks_that_run_one_after_the_other_pass_the_check(architecture: str) -> None:
    check_block_calls(tiny_model(architecture), tiny_windows())


def within(model: nn.Module) -> dict[str, bool]:
    """Whether the model's own forward pass is running, under "model"."""
    inside = {"model": False}
    model.register_forward_pre_hook(lambda *_: inside.update(model=True))
    model.register_forward_hook(lambda *_: inside.update(model=False), always_call=True)
    return inside


def test_a_model_whose_blocks_fail_apart_is_refused() -> None:
    model = tiny_model("llama")
    inside = within(model)

    def fail(_block: nn.Module, _inputs: object) -> None:
        if not inside["model"]:
            raise ValueError("a block before was not run")

    find_blocks(model)[1].register_forward_pre_hook(fail)
    with pytest.raises(PrunerZeroError, match="cannot be run one after the other"):
        check_block_calls(model, tiny_windows())


either_place = pytest.mark.parametrize("load", [load_model, load_offloaded])
# From the blocks that a model loops over to what it calls in their place.
Between = Callable[[Sequence[nn.Module]], Sequence[Callable[..., Any]]]


class Loop(nn.ModuleList):
    """Blocks between which the model does something."""

    between: Between

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return self.between(part) if isinstance(index, slice) else part


def assert_refused(load: Any, folder: Path, allowed: Between, refused: Between) -> None:
    def of(between: Between) -> LanguageModel:
        loaded: LanguageModel = load(folder)
        for block in find_blocks(loaded.model):
            block.forward = partial(with_a_sum, block.forward)
        layers = loaded.model.model.layers = Loop(loaded.model.model.layers)
        layers.between = between
        return loaded

    of(allowed).block_calls(tiny_windows())
    with pytest.raises(PrunerZeroError, match="blocks of the llama family cannot be run one after"):
        of(refused).block_calls(tiny_windows())


def with_a_sum(before: Callable[..., Tensor], hidden: Tensor, **kwargs: Any) -> Any:
    """What a block returns, and a second value."""
    return before(hidden, **kwargs), hidden.abs().sum()


def first_values(blocks: Sequence[nn.Module]) -> list[Callable[..., Tensor]]:
    """Calls of blocks that forget the second value."""
    return [lambda *args, block=block, **kwargs: block(*args, **kwargs)[0] for block in blocks]


def scaled(blocks: Sequence[nn.Module]) -> Sequence[Callable[..., Any]]:
    """The model changes the output of each block before the next one gets it."""
    return [
        lambda *args, run=run, **kwargs: 2 * run(*args, **kwargs) for run in first_values(blocks)
    ]


def passed_on(blocks: Sequence[nn.Module]) -> Sequence[Callable[..., Any]]:
    """Another argument of the blocks depends on the second value of the block before."""
    values = [torch.zeros(())]

    def call(block: nn.Module, hidden: Tensor, position_embeddings: Any, **rest: Any) -> Any:
        cos, sin = position_embeddings
        shifted = cos + values[-1], sin
        output, value = block(hidden, position_embeddings=shifted, **rest)
        values.append(torch.zeros(()) if value is None else value)
        return output

    return [partial(call, block) for block in blocks]


@either_place
@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(lambda blocks: 2 * first_values(blocks), id="two rounds"),
        pytest.param(lambda blocks: first_values(blocks)[::-1], id="backwards"),
        pytest.param(lambda blocks: first_values(blocks[:1]) * 2, id="one block alone"),
        pytest.param(
            lambda blocks: [run for run in first_values(blocks) for _ in range(2)], id="twice each"
        ),
        scaled,
        passed_on,
    ],
)
def test_a_family_is_refused_on_disk_as_in_memory(
    refused: Between, load: Any, llama_folder: Path
) -> None:
    assert_refused(load, llama_folder, first_values, refused)


@either_place
def test_a_lack_of_memory_is_not_taken_for_an_odd_family(load: Any, llama_folder: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded = load(llama_folder)
    find_blocks(loaded.model)[0].register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        loaded.block_calls(tiny_windows())
