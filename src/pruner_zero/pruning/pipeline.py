"""The order of work: which block is calibrated on what, scored and pruned when."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruner_zero.calibration import GradientNorm, Kind, StatisticsStore, calibrate, collect_inputs
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    check_tokens,
    check_weights,
    find_blocks,
    find_matrices,
    record_block_calls,
    run_block,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.checkpoint import Checkpoint
from pruner_zero.pruning.method import Method, Mode
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.scoring import (
    Statistics,
    check_shapes,
    prune_matrix,
    score_matrix,
)
from pruner_zero.sparsity import keep_masks_global
from pruner_zero.text import Windows


@dataclass(frozen=True)
class Selection:
    """Which matrices are pruned, as shell patterns over their names, and how calibration counts.

    damping: the share of the mean diagonal added to the Hessian.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float = 0.01
    gradient_norm: GradientNorm = "l2"


def check_plan(
    language_model: LanguageModel, windows: Windows, method: Method, selection: Selection
) -> list[Matrix]:
    """The matrices that will be pruned. Raises PrunerZeroError for all that can be known before."""
    matrices = find_matrices(language_model.model, selection.include, selection.exclude)
    check_shapes(matrices, method)
    check_tokens(language_model.model, windows.tokens)
    check_weights(matrices)
    return matrices


@torch.no_grad()
def prune_model(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    store: StatisticsStore,
    *,
    mode: Mode = "auto",
    selection: Selection = Selection(),
    checkpoint: Checkpoint | None = None,
    progress: Progress = SILENT,
) -> list[MatrixRecord]:
    """Prune the model in place and tell what was done to each matrix.

    Sequential: each block is calibrated on the output of the pruned blocks before it, as
    Wanda and SparseGPT do; G is always of the dense model. One-shot: everything is
    calibrated on the dense model. `store` keeps the dense statistics; `checkpoint` makes
    each finished block durable. Raises PrunerZeroError.
    """
    order = method.mode(mode)
    matrices = check_plan(language_model, windows, method, selection)
    kinds = method.kinds if order == "one-shot" else method.kinds & {"G"}
    calibrate(
        language_model, windows, kinds, store, norm=selection.gradient_norm, progress=progress
    )
    run = _Run(language_model, windows, method, store, matrices, selection, progress)
    masks = run.global_masks() if method.scope == "global" else {}
    records = checkpoint.restore(matrices) if checkpoint else []
    hidden = checkpoint.hidden() if checkpoint else None
    propagated = order == "sequential" and bool(method.kinds & {"X", "gram"})
    records += run.blocks(masks, propagated, hidden, checkpoint)
    for record in records:
        if record.note:
            progress.note(f"{record.name}: {record.note}")
    return records


@dataclass(frozen=True)
class _Run:
    language_model: LanguageModel
    windows: Windows
    method: Method
    store: StatisticsStore
    matrices: Sequence[Matrix]
    selection: Selection
    progress: Progress

    def global_masks(self) -> dict[str, Tensor]:
        """Masks of all matrices competing with each other, from dense weights and statistics.

        A matrix that calibration never reached has no score to compete with, and none here.
        """
        scores = {}
        blocks = range(len(find_blocks(self.language_model.model)))
        for block in self.progress.track(blocks, "scores"):
            own = [matrix for matrix in self.matrices if matrix.block == block]
            known = self.statistics(block, own, self.method.kinds)
            for matrix in own:
                score = score_matrix(
                    matrix, known[matrix.name], self.method.metric, self.selection.damping
                )
                if score is not None:
                    scores[matrix.name] = score
        masks = keep_masks_global(list(scores.values()), self.method.pattern.sparsity, list(scores))
        return dict(zip(scores, masks, strict=True))

    def blocks(
        self,
        masks: dict[str, Tensor],
        propagated: bool,
        hidden: list[Tensor] | None,
        checkpoint: Checkpoint | None,
    ) -> list[MatrixRecord]:
        """Prune all blocks not finished yet; hidden: the next one's input, where it is known."""
        first = checkpoint.finished if checkpoint else 0
        records: list[MatrixRecord] = []
        blocks = find_blocks(self.language_model.model)
        calls = None
        if propagated:
            calls = record_block_calls(self.language_model.model, self.windows.tokens)
            hidden = hidden or calls.hidden
        for index in self.progress.track(range(first, len(blocks)), "pruning", len(blocks) - first):
            own = [matrix for matrix in self.matrices if matrix.block == index]
            kinds = self.method.kinds - ({"X", "gram"} if propagated else set())
            known = self.statistics(index, own, kinds)
            if calls is not None and hidden is not None and own:
                arguments = calls.arguments[index]
                found, _ = collect_inputs(
                    blocks[index], own, hidden, arguments, gram="gram" in self.method.kinds
                )
                known = {
                    name: Statistics(one.X, known[name].G, one.gram) for name, one in found.items()
                }
            damping = self.selection.damping
            done = [
                prune_matrix(
                    matrix, known[matrix.name], self.method, damping, masks.get(matrix.name)
                )
                for matrix in own
            ]
            if calls is not None and hidden is not None:
                hidden = [
                    run_block(blocks[index], one, rest)
                    for one, rest in zip(hidden, calls.arguments[index], strict=True)
                ]
            if checkpoint:
                checkpoint.commit(own, done, hidden)
            records += done
        return records

    def statistics(
        self, block: int, matrices: Sequence[Matrix], kinds: frozenset[Kind]
    ) -> dict[str, Statistics]:
        """The dense model's statistics of one block, from the store."""
        read = {kind: self.store.read(kind, block) for kind in kinds} if matrices else {}
        return {
            matrix.name: Statistics(**{kind: one[matrix.name] for kind, one in read.items()})
            for matrix in matrices
        }
