"""A race of masks: the mask with which the model at hand stays nearest to the dense model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pruner_zero.models.blocks import Activations, blocks_replaced, run_windows
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.loss import in_float32
from pruner_zero.models.predictions import compare_logits
from pruner_zero.models.structure import Matrix, find_blocks
from pruner_zero.progress import note, track
from pruner_zero.pruning.masks import Mask, masks_of
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.sparsity.pattern import Lazy, groups
from pruner_zero.text.windows import Windows

# The share of the calibration windows on which masks are judged.
HELD_OUT = 1 / 16


@dataclass(frozen=True)
class Entry:
    """A mask in the race: its metric, its pattern, and KL(dense ‖ masked) in nats per token."""

    metric: str
    pattern: str
    divergence: float

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            "metric": self.metric,
            "pattern": self.pattern,
            "divergence": round(self.divergence, 5),
        }


def judged_apart(windows: Windows, everything: Windows) -> tuple[Windows, Tensor]:
    """The windows of the statistics behind the masks, and the tokens that masks are judged on.

    windows: those of the blocks, the first of `everything`. Masks are judged on the last sixteenth
    of everything, which the distillation keeps apart too; a single window is both.
    """
    judged = max(1, round(len(everything) * HELD_OUT))
    seen = max(1, min(len(windows), len(everything) - judged))
    if seen < len(windows):
        windows = replace(windows, tokens=windows.tokens[:seen])
    return windows, everything.tokens[-judged:]


@torch.no_grad()
def race(
    language_model: LanguageModel,
    tokens: Tensor,
    methods: Sequence[Method],
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
) -> list[Entry]:
    """Judge the masks alone that `methods` give the dense model on windows `tokens` (n, tokens).

    The masks are one-shot, by the statistics of the dense model. One walk over the blocks carries
    the activations of the dense model and of each masked one, so that one block at a time needs to
    be in memory; the weights are unchanged afterwards. Raises PrunerZeroError where a metric cannot
    score a matrix.
    """
    model = language_model.model
    masks = [_masks(language_model, method, matrices, statistics) for method in methods]
    calls = language_model.block_calls(tokens)
    dense: Activations = calls.hidden
    masked: list[Activations] = [calls.hidden for _ in methods]
    depth = len(find_blocks(model))
    for index in track(range(depth), "race of masks", depth):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        with language_model.block(index) as block:
            kept = [[mask[matrix.name].kept for matrix in of_block] for mask in masks]
            dense = run_windows(block, dense, calls.arguments[index])
            weights = [matrix.weight.clone() for matrix in of_block]
            try:
                for number, of_method in enumerate(kept):
                    for matrix, weight, mask in zip(of_block, weights, of_method, strict=True):
                        assert mask is not None
                        matrix.weight.copy_(weight.masked_fill(~mask, 0))
                    masked[number] = run_windows(block, masked[number], calls.arguments[index])
            finally:
                for matrix, weight in zip(of_block, weights, strict=True):
                    matrix.weight.copy_(weight)

    def logits(window: int, hidden: Activations) -> Tensor:
        ids = tokens[window : window + 1].to(model.device)
        with blocks_replaced(model, hidden[window], calls.as_tuple), in_float32(model):
            result: Tensor = model(ids, use_cache=False).logits[0, :-1]
        return result

    totals = torch.zeros(len(methods))
    with language_model.outside():
        for window in range(len(tokens)):
            wanted = logits(window, dense)
            for number, hidden in enumerate(masked):
                nats, _ = compare_logits(logits(window, hidden), wanted)
                totals[number] += float(nats.mean()) / len(tokens)
    named = zip(methods, totals.tolist(), strict=True)
    return [Entry(str(m.metric.expression), str(m.pattern), total) for m, total in named]


def best_mask(
    language_model: LanguageModel,
    tokens: Tensor,
    method: Method,
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
) -> tuple[Method, list[Entry]]:
    """The method with the best mask of its own and its rivals', and all entries, the best first.

    They are judged on the windows `tokens` (n, tokens).
    """
    methods = (replace(method, rivals=()), *method.rivals)
    entries = race(language_model, tokens, methods, matrices, statistics)
    # An overflow gives NaN, which compares with nothing.
    order = sorted(
        range(len(entries)),
        key=lambda i: (math.isnan(entries[i].divergence), entries[i].divergence),
    )
    best, ranked = methods[order[0]], [entries[number] for number in order]
    shown = ", ".join(f"{e.divergence:.3f} {e.metric} ({e.pattern})" for e in ranked)
    note(f"divergence of masks alone on {len(tokens)} held-out windows, in nats per token: {shown}")
    return replace(methods[0], metric=best.metric, pattern=best.pattern), ranked


def _masks(
    language_model: LanguageModel,
    method: Method,
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
) -> Mapping[str, Mask]:
    """The masks of all matrices, computed when they are asked for."""
    by_name = {matrix.name: matrix for matrix in matrices}
    parts = groups(method.pattern, {matrix.name: matrix.block for matrix in matrices})
    group_of = {name: tuple(names) for names in parts for name in names}

    # One group at a time, because a group may hold scores until its masks are asked for.
    @lru_cache(maxsize=1)
    def of_group(names: tuple[str, ...]) -> Mapping[str, Mask]:
        return masks_of(
            [by_name[name] for name in names],
            method,
            lambda matrix: statistics.read(matrix, method.scoring_kinds),
            load=language_model.block,
            hold=0 if language_model.on_disk else None,
        )

    return Lazy(group_of, lambda name: of_group(group_of[name])[name])
