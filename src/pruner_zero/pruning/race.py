"""A race of masks: the mask with which the model at hand stays nearest to the dense model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration.walk import Stream, Walk
from pruner_zero.models.block_calls import blocks_replaced
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix
from pruner_zero.models.next_token import in_float32
from pruner_zero.models.predictions import compare_logits
from pruner_zero.progress import note
from pruner_zero.pruning.checkpoint import FinishedBlocks
from pruner_zero.pruning.masks import DenseStatistics, Mask, dense_masks
from pruner_zero.pruning.recipe import Race, Scored
from pruner_zero.text.token_windows import Windows

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

    def __str__(self) -> str:
        return f"{self.divergence:.3f} {self.metric} ({self.pattern})"


@dataclass(frozen=True)
class Raced:
    """The outcome of a race: the mask that won, the `entries`, the best first.

    masks: of the winner, where this process held the race.
    """

    winner: Scored | None = None
    entries: Sequence[Entry] = ()
    masks: Mapping[str, Mask] | None = None


def held_out(windows: Windows, everything: Windows) -> tuple[Windows, Tensor]:
    """The windows of the statistics behind the masks, and the tokens (n, seqlen) that judge masks.

    windows: those that blocks are trained on, the first of `everything`. Masks are judged on the
    last sixteenth of everything, on which the distillation is not trained either. Where there is
    a single window, it serves both.
    """
    judged = max(1, round(len(everything) * HELD_OUT))
    seen = max(1, min(len(windows), len(everything) - judged))
    if seen < len(windows):
        windows = replace(windows, tokens=windows.tokens[:seen])
    return windows, everything.tokens[-judged:]


def hold_race(
    language_model: LanguageModel,
    judged: Tensor,
    racing: Race,
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
    finished: FinishedBlocks,
) -> Raced:
    """The outcome of a race on the windows `judged` (n, tokens), by statistics of other windows.

    A run that goes on keeps the mask of its first start. Raises PrunerZeroError.
    """
    masks: list[Mapping[str, Mask]] = []

    def judge() -> list[dict[str, Any]]:
        for entry in racing.entries:
            masks.append(dense_masks(language_model, entry, matrices, statistics))
        return [
            asdict(entry) for entry in race(language_model, judged, racing.entries, matrices, masks)
        ]

    raced = [Entry(**entry) for entry in finished.decide("race", judge)]
    order = ranked(raced)
    entries = [raced[number] for number in order]
    note(
        f"divergence of masks alone on {len(judged)} held-out windows, in nats per token: "
        + ", ".join(map(str, entries))
    )
    return Raced(racing.entries[order[0]], entries, masks[order[0]] if masks else None)


@torch.no_grad()
def race(
    language_model: LanguageModel,
    tokens: Tensor,
    entries: Sequence[Scored],
    matrices: Sequence[Matrix],
    masks: Sequence[Mapping[str, Mask]],
) -> list[Entry]:
    """Judge the `masks` alone, those of `entries`, on windows `tokens` (n, tokens).

    masks: as `dense_masks` gives them. One walk over the blocks carries the activations of the
    dense model and of each masked one, so that one block at a time needs to be in memory; the
    weights are unchanged afterwards. Raises PrunerZeroError where a metric cannot score a matrix.
    """
    model = language_model.model
    walk = Walk(language_model, tokens)
    dense, masked = walk.carry(), [walk.carry() for _ in entries]
    for index, block in walk.blocks("race of masks"):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        kept = [[mask[matrix.name].kept for matrix in of_block] for mask in masks]
        dense.advance(block, index)
        weights = [matrix.weight.clone() for matrix in of_block]
        try:
            for stream, of_entry in zip(masked, kept, strict=True):
                for matrix, weight, mask in zip(of_block, weights, of_entry, strict=True):
                    assert mask is not None
                    matrix.weight.copy_(weight.masked_fill(~mask, 0))
                stream.advance(block, index)
        finally:
            for matrix, weight in zip(of_block, weights, strict=True):
                matrix.weight.copy_(weight)

    def logits(window: int, stream: Stream) -> Tensor:
        ids = tokens[window : window + 1].to(model.device)
        with blocks_replaced(model, stream.hidden[window], stream.as_tuple), in_float32(model):
            result: Tensor = model(ids, use_cache=False).logits[0, :-1]
        return result

    totals = torch.zeros(len(entries))
    with language_model.outside():
        for window in range(len(tokens)):
            wanted = logits(window, dense)
            for number, stream in enumerate(masked):
                nats, _ = compare_logits(logits(window, stream), wanted)
                totals[number] += float(nats.mean()) / len(tokens)
    judged = zip(entries, totals.tolist(), strict=True)
    return [Entry(str(e.metric.expression), str(e.pattern), total) for e, total in judged]


def ranked(entries: Sequence[Entry]) -> list[int]:
    """The numbers of the entries, the best first."""
    # An overflow gives NaN, which compares with nothing.
    return sorted(
        range(len(entries)),
        key=lambda i: (math.isnan(entries[i].divergence), entries[i].divergence),
    )
