"""One walk over the blocks with the activations of several versions of a model side by side."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruner_zero.calibration.walk import Walk, WindowFile
from pruner_zero.models.block_calls import Activations, BlockCalls, shares_state
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from tests.tiny import tiny_tokenizer
from tests.tiny_models import SHARING, tiny_model, tiny_windows

SCALES = (1.0, 0.5, 0.0)
FAMILIES = ("llama", "gpt2", "falcon", "qwen3_moe", SHARING)


def build(family: str) -> LanguageModel:
    return LanguageModel(tiny_model(family, blocks=4), tiny_tokenizer(), family)


@contextmanager
def scaled(block: nn.Module, scale: float) -> Iterator[None]:
    """Within the context, the matrices of a block are those of another version of the model."""
    linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
    before = [module.weight.clone() for module in linear]
    for module in linear:
        module.weight.mul_(scale)
    yield
    for module, weight in zip(linear, before, strict=True):
        module.weight.copy_(weight)


def record_outputs(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of every block (windows, tokens, width), of a whole forward pass."""
    outputs: list[torch.Tensor] = []

    def note(_block: object, _inputs: object, output: object) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    hooks = [block.register_forward_hook(note) for block in find_blocks(model)]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_versions_side_by_side_are_those_of_separate_runs(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of one version must not give their keys and values to those of another."""
    model, tokens, recorded = build(family), tiny_windows(), []
    record = LanguageModel.block_calls

    def noted(*arguments: Any) -> BlockCalls:
        recorded.append(record(*arguments))
        return recorded[-1]

    monkeypatch.setattr(LanguageModel, "block_calls", noted)
    walk = Walk(model, tokens)
    streams = {scale: walk.carry() for scale in SCALES}
    shares = shares_state(recorded[0])
    assert shares == (family == SHARING)
    assert len(recorded) == (len(SCALES) if shares else 1)
    for index, block in walk.blocks("walk"):
        for scale, stream in streams.items():
            with scaled(block, scale):
                stream.advance(block, index)
    for scale, stream in streams.items():
        version = build(family).model
        for block in find_blocks(version):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(scale)
        expected = record_outputs(version, tokens)[-1]
        torch.testing.assert_close(torch.cat([*stream.hidden]), expected)


@torch.no_grad()
def test_a_walk_goes_on_from_activations_that_lie_in_files(tmp_path: Path) -> None:
    model, tokens = build("llama"), tiny_windows()

    def file(index: int) -> Activations:
        return WindowFile(tmp_path / f"{index}.safetensors", len(tokens))

    walk = Walk(model, tokens)
    memory, disk = walk.carry(), walk.carry(file)
    for index, block in walk.blocks("walk"):
        memory.advance(block, index)
        disk.advance(block, index)
    assert isinstance(disk.hidden, WindowFile)
    walk = Walk(model, tokens)
    resumed = walk.carry(file, WindowFile.open(tmp_path / "3.safetensors"))
    numbers = []
    for index, block in walk.blocks("walk", 3):
        numbers.append(index)
        resumed.advance(block, index)
    assert numbers == [3]
    for stream in (disk, resumed):
        assert torch.equal(torch.cat([*stream.hidden]), torch.cat([*memory.hidden]))


@torch.no_grad()
def test_the_aim_is_the_dense_model_where_blocks_share_keys_and_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where other families run in bfloat16, whose keys and values could not be observed."""
    monkeypatch.setattr("pruner_zero.models.next_token.has_fast_bfloat16", lambda _: True)
    model, tokens = build(SHARING), tiny_windows()
    expected = record_outputs(build(SHARING).model, tokens)
    walk = Walk(model, tokens)
    pruned, dense = walk.carry(fast=True), walk.carry(fast=True)
    matrices = find_matrices(model.model)
    for index, block in walk.blocks("walk"):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        pruned.collect(block, index, of_block, {"gram"})
        dense.advance(block, index)
        torch.testing.assert_close(torch.cat([*dense.hidden]), expected[index])
        for matrix in of_block:
            matrix.weight.mul_(0.5)
        pruned.advance(block, index)
