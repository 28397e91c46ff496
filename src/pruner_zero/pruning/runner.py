"""The runner: when, and on which inputs, each block is calibrated, masked and changed.

`masks.py` makes scores of weights and statistics, and the pattern chooses masks by them;
`matrix.py` writes the zeros and runs the update; `checkpoint.py` makes finished blocks durable.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate, open_store
from pruner_zero.calibration.statistics import GradientStatistic, InputStatistic, Kind, select
from pruner_zero.calibration.walk import Stream, Walk
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_matrices, size_of
from pruner_zero.progress import note
from pruner_zero.pruning.checkpoint import Progress, training_folder, whole_model
from pruner_zero.pruning.checks import check_recipe
from pruner_zero.pruning.masks import (
    DenseStatistics,
    Mask,
    Statistics,
    block_statistics,
    dense_masks,
    masks_of,
    masks_of_cut,
    scores_of,
)
from pruner_zero.pruning.matrix import MatrixRecord, open_mask, prune_matrix, recounted, sweeps
from pruner_zero.pruning.race import Entry, Raced, held_out, hold_race
from pruner_zero.pruning.recipe import Race, Recipe, Scored
from pruner_zero.sparsity.pattern import Lazy, groups
from pruner_zero.structure.cut import Cut
from pruner_zero.text.token_windows import Windows
from pruner_zero.training.distillation import distillation
from pruner_zero.training.reconstruction import OpenMask, reconstruct
from pruner_zero.training.train import Point


@dataclass(frozen=True)
class Pruned:
    """The outcome of a recipe.

    recipe: with the mask that won the race, and the units that it removed. size: the number of
    parameters of the pruned model and their bytes. curve: the learning curve of the distillation.
    raced: the masks of the race, the best first.
    """

    recipe: Recipe
    records: list[MatrixRecord]
    size: tuple[int, int]
    curve: Sequence[Point] = ()
    raced: Sequence[Entry] = ()


def run_recipe(
    language_model: LanguageModel,
    windows: Windows,
    recipe: Recipe,
    store: StatisticsStore,
    *,
    matrices: Sequence[Matrix] | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    undo: ExitStack | None = None,
) -> Pruned:
    """Prune the model by a recipe, in place: masks and update, cut-out units, distillation.

    matrices: what `check_recipe` returned; all matrices, after the same checks, where None; where
    no units are cut out, they alone are trained. `store` keeps the dense statistics of all
    `windows`; where those are of a part of them, another store beside it does. `journal` makes each
    finished block durable; it holds the result of an offloaded model, and its activations between
    two blocks. seed: of all training. undo: units that were cut out come back when it is closed;
    where None they are gone for good. An offloaded model keeps masked units: its files are cut when
    they are saved. Raises PrunerZeroError.
    """
    model, cut = language_model.model, recipe.cut
    progress = Progress(language_model, journal)
    if matrices is None:
        matrices = check_recipe(language_model, recipe, saved=journal is not None)
    everything, (windows, distilled) = windows, for_training(windows, recipe)
    seen = windows
    if isinstance(recipe.masks, Race):
        seen = held_out(windows, everything)[0]
    elif cut and cut.compares:
        seen = replace(windows, tokens=windows.tokens[: max(1, cut.compares // windows.seqlen)])
    if seen is not everything:
        cache, fingerprint = store.folder.parent, store.settings["model"]
        store = open_store(language_model, seen, folder=cache, fingerprint=fingerprint)
    statistics, kinds = DenseStatistics(store), dense_kinds(recipe)
    if cut and (cut.when != "masks" or cut.compares):
        # Before the distillation, which needs to know the tokens that stay.
        calibrate(language_model, seen, kinds, store)
        cut = _decided(language_model, everything, recipe, cut, statistics)
    train = None
    if recipe.distill:
        # Before the first block, because it needs the dense model's predictions.
        train = distillation(
            language_model,
            distilled,
            recipe.distill,
            seed=seed,
            folder=training_folder(journal, recipe.distill) if journal else None,
            translation=cut.translation if cut else None,
        )
    masks, raced = recipe.masks, Raced()
    if isinstance(masks, Race):
        calibrate(language_model, seen, kinds, store)
        judged = held_out(windows, everything)[1]
        raced = hold_race(language_model, judged, masks, matrices, statistics, progress)
        masks = raced.winner
    if cut:
        cut = cut.prepared(language_model, windows.tokens)
    recipe = recipe.settled(masks, cut)
    calibrate(language_model, seen, dense_kinds(recipe), store)
    records: list[MatrixRecord] = []
    if not cut or cut.when != "text":
        run = _Run(language_model, windows, recipe, matrices, statistics, progress, seed, raced)
        records = run.blocks()
    for record in records:
        if record.note:
            note(f"{record.name}: {record.note}")
    size = cut.size(model) if cut else size_of(model)
    if cut and undo is not None:
        undo.enter_context(cut.undone(model))
    elif cut and not language_model.on_disk:
        cut.cut(model)
    if train is None:
        return Pruned(recipe, records, size, raced=raced.entries)
    # Where units were cut out, all matrices are trained, and experts have other numbers.
    chosen = None if cut else {matrix.name for matrix in matrices}
    with whole_model(language_model, journal, recipe.distill) as whole:
        trained = [m for m in find_matrices(whole) if chosen is None or m.name in chosen]
        return Pruned(recipe, records, size, train(whole, trained), raced.entries)


def for_training(windows: Windows, recipe: Recipe) -> tuple[Windows, Windows]:
    """The windows that blocks are trained on, and those of the distillation after it.

    The distillation gains little on windows that the blocks were trained on (benchmarks/why.md):
    each has a half, but where there are too few.
    """
    half = len(windows) // 2
    if half < 2 or not (recipe.reconstruct and recipe.distill):
        return windows, windows
    parts = (windows.tokens[: len(windows) - half], windows.tokens[-half:])
    return replace(windows, tokens=parts[0]), replace(windows, tokens=parts[1])


def takes_all_windows(recipe: Recipe) -> bool:
    """Whether its statistics are of all calibration windows, and not of the first ones."""
    in_part = recipe.cut is not None and recipe.cut.compares > 0
    in_part |= isinstance(recipe.masks, Race) or bool(recipe.reconstruct and recipe.distill)
    return not in_part


def dense_kinds(recipe: Recipe) -> frozenset[Kind]:
    """The statistics of the dense model that have to be collected before the first block."""
    if recipe.order == "one-shot":
        return recipe.kinds()
    # Gradients are of the dense model even where inputs are of pruned blocks.
    gradients = frozenset(select(GradientStatistic, recipe.kinds()))
    pattern, cut = recipe.pattern, recipe.cut
    whole = pattern is None or pattern.reach == "model" or isinstance(recipe.masks, Race)
    return gradients | recipe.kinds(update=False) if whole or (cut and cut.compares) else gradients


@torch.no_grad()
def _decided(
    language_model: LanguageModel,
    windows: Windows,
    recipe: Recipe,
    cut: Cut,
    statistics: DenseStatistics,
) -> Cut:
    """The cut with the units that go, by the dense model."""
    matrices = find_matrices(language_model.model)
    scores: Mapping[str, Tensor] = {}
    if kind := cut.statistic:
        blocks, read = {matrix.name: matrix.block for matrix in matrices}, statistics.store.read
        scores = Lazy(blocks, lambda name: read(kind, blocks[name], [name])[name])
    elif recipe.metric:
        kinds = recipe.kinds(update=False)
        scores = scores_of(
            matrices,
            recipe.metric,
            lambda matrix: statistics.read(matrix, kinds),
            language_model.block,
            hold=0,
        )
    return cut.decide(language_model, windows, scores)


@dataclass(frozen=True)
class _Run:
    """The parts of one run over the blocks."""

    language_model: LanguageModel
    windows: Windows
    recipe: Recipe
    matrices: Sequence[Matrix]
    statistics: DenseStatistics
    progress: Progress
    seed: int
    raced: Raced = field(default_factory=Raced)

    @torch.no_grad()
    def blocks(self) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all."""
        model, recipe, progress = self.language_model, self.recipe, self.progress
        last = max(matrix.block for matrix in self.matrices)
        begun = progress.finished <= last
        # They look at dense weights, so they come before finished blocks are restored.
        masks = self.masks() if begun else None
        walk, records = Walk(model, self.windows.tokens), progress.records
        pruned, dense = self.streams(walk, begun)
        for index, block in walk.blocks("pruning", progress.finished):
            matrices = [matrix for matrix in self.matrices if matrix.block == index]
            inputs: dict[str, Statistics] = {}
            opened: dict[Matrix, OpenMask] = {}
            if dense:
                dense.advance(block, index)
            # Where the dense model decides the masks, an update alone needs these inputs.
            if pruned and matrices and (masks is None or recipe.update):
                inputs = block_statistics(pruned.collect(block, index, matrices, recipe.kinds()))
            done = list(self.prune(masks, matrices, inputs, opened))
            if pruned and dense and matrices:
                streams = pruned.hidden, pruned.arguments[index], dense.hidden
                passes, seed = recipe.reconstruct, self.seed
                reconstruct(block, matrices, *streams, passes, seed, opened)
                done = [recounted(r, m) for r, m in zip(done, matrices, strict=True)]
            if index == last:
                # No block after it has matrices, so nothing needs its outputs.
                pruned = dense = None
            if pruned:
                pruned.advance(block, index)
            # Not bound to a name, so that the tensors are freed with the block.
            progress.commit(model.changed(index, matrices), done, pruned and pruned.hidden)
            records += done
        return records

    def streams(self, walk: Walk, begun: bool) -> tuple[Stream | None, Stream | None]:
        """The activations of the pruned and of the dense model, where they are needed.

        Both are before the first block that is not finished. Dense blocks are run before the
        finished ones are restored. begun: whether blocks with matrices are left.
        """
        recipe, progress = self.recipe, self.progress
        pruned = dense = None
        if begun and recipe.order == "sequential":
            # Training takes products in bfloat16 as well.
            fast = recipe.reconstruct > 0
            pruned = progress.carry(walk, len(self.windows), fast=fast)
            if fast:
                dense = progress.carry(walk, len(self.windows), fast=fast, dense=True)
        progress.restore()
        if pruned:
            progress.catch_up(pruned)
        return pruned, dense

    def masks(self) -> Mapping[str, Mask] | None:
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

    def prune(
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
            statistics = {matrix: self.read(matrix, inputs) for matrix in group}
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

    def read(self, matrix: Matrix, inputs: dict[str, Statistics]) -> Statistics:
        """The statistics of one matrix: its entry of `inputs`, else those of the dense model."""
        kinds = self.recipe.kinds() if self.recipe.pattern else frozenset[Kind]()
        if not inputs:
            return self.statistics.read(matrix, kinds)
        dense = self.statistics.read(matrix, kinds - select(InputStatistic, kinds).keys())
        fresh = inputs.pop(matrix.name)
        return replace(fresh, values={**fresh.values, **dense.values})
