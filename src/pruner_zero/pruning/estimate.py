"""How long a recipe takes and how much memory, from a few timed seconds of the model at hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from pruner_zero.calibration.statistics import (
    WeightGradientStatistic,
    by_loss,
    select,
    windows_needed,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.block_calls import BlockCalls, blocks_replaced, run_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_blocks, find_matrices, size_of
from pruner_zero.models.next_token import in_float32
from pruner_zero.provenance import peak_rss_bytes, wait_for_gpus
from pruner_zero.pruning.race import HELD_OUT
from pruner_zero.pruning.recipe import Race, Recipe
from pruner_zero.training.reconstruction import reconstruct

# The tokens of what is timed, as many as in a step of training.
_TOKENS = 1024
# The windows that a model writes at a time.
_TOGETHER = 96
# Parameters times tokens below which all is done in seconds, and nothing is timed.
_LITTLE = 10**10


@dataclass(frozen=True)
class Estimate:
    """The wall time in seconds, and the peak memory in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{max(self.seconds, 1):.0f} seconds"
        return f"about {took}, {self.memory / 2**30:.1f} GiB"


@dataclass(frozen=True)
class _Timed:
    """Seconds of the first block and of the head, for `_TOKENS` tokens each.

    forward: of the block. learn: a step of training of the block. head: the logits. drawn: the
    block and the head for one token in each of the windows that are written at a time.
    """

    forward: float
    learn: float
    head: float
    drawn: float


@torch.no_grad()
def estimate(
    language_model: LanguageModel, recipe: Recipe, matrices: Sequence[Matrix], *, writes: bool
) -> Estimate | None:
    """What `run_recipe` will take; None where the blocks of the model cannot be run alone.

    writes: whether the model writes the calibration text, which may be in the cache already. The
    parts of the work are multiples of what is timed: the first block stands for all. The model is
    unchanged afterwards.
    """
    model, text = language_model.model, recipe.text
    depth, tokens = len(find_blocks(model)), text.tokens if text else 0
    timed = None
    try:
        if text and size_of(model)[0] * tokens > _LITTLE:
            timed = _time(language_model, recipe, text.seqlen)
    except PrunerZeroError:
        # The run itself says why.
        return None
    seconds = 0.0
    if timed and text:
        forward, head = depth * timed.forward / _TOKENS, timed.head / _TOKENS
        blocks = tokens // 2 if recipe.reconstruct and recipe.distill else tokens
        if writes:
            seconds += tokens / min(_TOGETHER, text.windows) * timed.drawn
        if recipe.cut:
            seconds += min(tokens, recipe.cut.reads * text.seqlen) * (forward + head)
        if recipe.distill:
            seconds += (tokens - blocks or tokens) * (forward + head)
            # Activations are computed again in the backward pass.
            seconds += recipe.distill * (depth * (timed.learn + timed.forward) + 3 * timed.head)
        # A backward pass takes twice as long as a forward pass.
        priced = recipe.cut.compares if recipe.cut else 0
        passed = min(blocks, priced or blocks)
        for kinds in by_loss(recipe.kinds()):
            windows = windows_needed(kinds, passed // text.seqlen, text.seqlen)
            seconds += 3 * windows * text.seqlen * (forward + head)
        if isinstance(recipe.masks, Race):
            seconds += (1 + len(recipe.entries)) * HELD_OUT * tokens * (forward + head)
        if recipe.kinds() or recipe.reconstruct:
            seconds += (3 if recipe.reconstruct else 2) * blocks * forward
        seconds += recipe.reconstruct * blocks / _TOKENS * depth * timed.learn
    return Estimate(seconds, _memory(language_model, recipe, matrices, tokens))


def _time(language_model: LanguageModel, recipe: Recipe, seqlen: int) -> _Timed:
    model = language_model.model
    windows = torch.zeros(max(1, _TOKENS // seqlen), min(seqlen, _TOKENS), dtype=torch.int64)
    calls = language_model.block_calls(windows)
    few = language_model.block_calls(windows[:1, :_TOGETHER])
    matrices = [matrix for matrix in find_matrices(model) if matrix.block == 0]
    learn = 0.0
    with language_model.block(0) as block:
        with in_float32(block):
            forward = _seconds(lambda: run_windows(block, calls.hidden, calls.arguments[0]))
            drawn = _seconds(lambda: run_windows(block, few.hidden, few.arguments[0]))
        if recipe.reconstruct or recipe.distill:
            with _restored(block):
                learn = _seconds(lambda: _learn(block, matrices, calls))
    with language_model.outside(), in_float32(model):
        head = _seconds(lambda: _logits(model, windows, calls))
        drawn = len(find_blocks(model)) * drawn + _seconds(lambda: _logits(model, windows[:1], few))
    return _Timed(forward, learn, head, drawn)


def _learn(block: nn.Module, matrices: Sequence[Matrix], calls: BlockCalls) -> None:
    hidden = calls.hidden
    # Towards its own inputs: what is learned does not matter.
    reconstruct(block, matrices, hidden, calls.arguments[0], hidden, passes=1)


def _logits(model: nn.Module, windows: Tensor, calls: BlockCalls) -> Tensor:
    length = calls.hidden[0].shape[1]
    ids = windows[:1, :length].to(calls.hidden[0].device)
    for hidden in calls.hidden:
        with blocks_replaced(model, hidden, calls.as_tuple):
            logits: Tensor = model(ids, use_cache=False).logits
    return logits


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two runs, since the first one also prepares kernels."""
    times = []
    for _ in range(2):
        start = perf_counter()
        work()
        wait_for_gpus()
        times.append(perf_counter() - start)
    return min(times)


@contextmanager
def _restored(block: nn.Module) -> Iterator[None]:
    """Within the context, the parameters of `block` are copies, which may be changed."""
    before = [(parameter, parameter.data) for parameter in block.parameters()]
    for parameter, values in before:
        parameter.data = values.clone()
    try:
        yield
    finally:
        for parameter, values in before:
            parameter.data = values


def _memory(
    language_model: LanguageModel, recipe: Recipe, matrices: Sequence[Matrix], tokens: int
) -> int:
    """The peak of the memory in bytes: that of now, and what the largest part of the work adds."""
    model, on_disk = language_model.model, language_model.on_disk
    weights, numbers = size_of(model)[1], sum(matrix.weight.numel() for matrix in matrices)
    width = model.get_input_embeddings().weight.shape[1]
    block = max(sum(p.numel() for p in block.parameters()) for block in find_blocks(model))
    parts = [0]
    if select(WeightGradientStatistic, recipe.kinds()) and not on_disk:
        # A sum for each weight, and the gradient of a matrix.
        parts.append(4 * (numbers + block))
    if recipe.distill:
        # The weights in float32, the largest gradient, and some logits.
        parts.append(4 * (numbers + 2 * block) + 2**28 + weights * on_disk)
    if recipe.reconstruct:
        # A block in float32, its mask, gradients and AdamW's moments; of open masks the weights
        # beneath, what is kept, and scores by size; inputs and targets.
        each = 20 + 12 * recipe.opens_masks
        parts.append(each * block + (0 if on_disk else 4 * 2 * tokens * width))
    return peak_rss_bytes() + max(parts)
