"""The loop over the blocks: on which inputs each one is calibrated, masked, updated and trained.

`masks.py` makes scores of weights and statistics, and the pattern chooses masks by them;
`matrix.py` writes the zeros and runs the update; `checkpoint.py` makes finished blocks durable.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pruner_zero.calibration.statistics import InputStatistic, Kind, select
from pruner_zero.calibration.walk import Stream, Walk
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix
from pruner_zero.pruning.checkpoint import FinishedBlocks
from pruner_zero.pruning.masks import (
    DenseStatistics,
    Mask,
    Statistics,
    block_statistics,
    dense_masks,
    masks_of,
    masks_of_cut,
)
from pruner_zero.pruning.matrix import MatrixRecord, open_mask, prune_matrix, recounted, sweeps
from pruner_zero.pruning.race import Raced
from pruner_zero.pruning.recipe import Recipe, Scored
from pruner_zero.sparsity.pattern import groups
from pruner_zero.text.token_windows import Windows
from pruner_zero.training.reconstruction import OpenMask, reconstruct


@dataclass(frozen=True)
class Blocks:
    """What one run over the blocks needs.

    matrices: those to prune. statistics: of the dense model. raced: of a race that decided the
    masks.
    """

    language_model: LanguageModel
    windows: Windows
    recipe: Recipe
    matrices: Sequence[Matrix]
    statistics: DenseStatistics
    finished: FinishedBlocks
    raced: Raced = field(default_factory=Raced)

    @torch.no_grad()
    def prune(self, seed: int) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all.

        seed: of the training of each block.
        """
        model, recipe, finished = self.language_model, self.recipe, self.finished
        last = max(matrix.block for matrix in self.matrices)
        begun = finished.count <= last
        # They look at dense weights, so they come before finished blocks are restored.
        masks = self._masks() if begun else None
        walk, records = Walk(model, self.windows.tokens), finished.records
        pruned, dense = self._streams(walk, begun)
        for index, block in walk.blocks("pruning", finished.count):
            matrices = [matrix for matrix in self.matrices if matrix.block == index]
            inputs: dict[str, Statistics] = {}
            opened: dict[Matrix, OpenMask] = {}
            if dense:
                dense.advance(block, index)
            # Where the dense model decides the masks, an update alone needs these inputs.
            if pruned and matrices and (masks is None or recipe.update):
                inputs = block_statistics(pruned.collect(block, index, matrices, recipe.kinds()))
            done = list(self._pruned(masks, matrices, inputs, opened))
            if pruned and dense and matrices:
                streams = pruned.hidden, pruned.arguments[index], dense.hidden
                reconstruct(block, matrices, *streams, recipe.reconstruct, seed, opened)
                done = [recounted(r, m) for r, m in zip(done, matrices, strict=True)]
            if index == last:
                # No block after it has matrices, so nothing needs its outputs.
                pruned = dense = None
            if pruned:
                pruned.advance(block, index)
            # Not bound to a name, so that the tensors are freed with the block.
            finished.commit(model.changed(index, matrices), done, pruned.hidden if pruned else None)
            records += done
        return records

    def _streams(self, walk: Walk, begun: bool) -> tuple[Stream | None, Stream | None]:
        """The activations of the pruned and of the dense model, where they are needed.

        Both are before the first block that is not finished. Dense blocks are run before the
        finished ones are restored. begun: whether blocks with matrices are left.
        """
        recipe, finished = self.recipe, self.finished
        pruned = dense = None
        if begun and recipe.order == "sequential":
            # Training takes products in bfloat16 as well.
            fast = recipe.reconstruct > 0
            pruned = finished.carry(walk, len(self.windows), fast=fast)
            if fast:
                dense = finished.carry(walk, len(self.windows), fast=fast, dense=True)
        finished.restore()
        if pruned:
            finished.catch_up(pruned)
        return pruned, dense

    def _masks(self) -> Mapping[str, Mask] | None:
        """The masks of all matrices, where the whole dense model decides them."""
        scored, cut = self.recipe.masks, self.recipe.cut
        if cut and cut.when == "dense":
            return masks_of_cut(self.matrices, cut)
        assert isinstance(scored, Scored)
        if scored.pattern.reach != "model":
            return None
        if self.raced.masks is not None:
            return self.raced.masks
        return dense_masks(self.language_model, scored, self.matrices, self.statistics)

    def _pruned(
        self,
        decided: Mapping[str, Mask] | None,
        matrices: Sequence[Matrix],
        inputs: dict[str, Statistics],
        opened: dict[Matrix, OpenMask],
    ) -> Iterator[MatrixRecord]:
        """Prune the matrices of one loaded block; entries of `inputs` are removed when used.

        decided: the masks where the dense model has decided them. opened: takes in the masks that
        training may choose anew.
        """
        recipe, scored = self.recipe, self.recipe.masks
        by_name = {matrix.name: matrix for matrix in matrices}
        parts = [[name] for name in by_name]
        if decided is None and isinstance(scored, Scored):
            parts = groups(scored.pattern, {name: m.block for name, m in by_name.items()})
        # All masks of the block, before the first of its weights changes.
        masks = {} if decided is None else {name: decided[name] for name in by_name}
        for names in parts:
            group = [by_name[name] for name in names]
            statistics = {matrix: self._read(matrix, inputs) for matrix in group}
            if decided is None:
                assert isinstance(scored, Scored)
                lazy = masks_of(group, scored, statistics.__getitem__, sweep=sweeps(recipe))
                masks = {name: lazy[name] for name in names}
            for matrix in group:
                mask, of_matrix = masks[matrix.name], statistics.pop(matrix)
                if recipe.opens_masks and isinstance(scored, Scored):
                    follows = open_mask(matrix, of_matrix, scored, mask)
                    opened |= {matrix: follows} if follows else {}
                yield prune_matrix(matrix, of_matrix, recipe, mask)
                self.language_model.release()

    def _read(self, matrix: Matrix, inputs: dict[str, Statistics]) -> Statistics:
        """The statistics of one matrix: its entry of `inputs`, else those of the dense model."""
        kinds = self.recipe.kinds() if self.recipe.pattern else frozenset[Kind]()
        if not inputs:
            return self.statistics.read(matrix, kinds)
        dense = self.statistics.read(matrix, kinds - select(InputStatistic, kinds).keys())
        fresh = inputs.pop(matrix.name)
        return replace(fresh, values={**fresh.values, **dense.values})
