"""The runner: when, and on which inputs, each block is calibrated, masked and changed.

`masks.py` makes scores of weights and statistics, and the pattern chooses masks by them;
`matrix.py` writes the zeros and runs the steps after the mask.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate, open_store
from pruner_zero.calibration.statistics import InputStatistic, Kind, select
from pruner_zero.calibration.walk import Storage, Stream, Walk, WindowFile
from pruner_zero.journal import Journal
from pruner_zero.models.couplings import Coupling
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import (
    Matrix,
    check_finite,
    check_weights,
    find_blocks,
    find_matrices,
    size_of,
)
from pruner_zero.progress import note
from pruner_zero.pruning.checkpoint import (
    commit_block,
    finished_records,
    last_activations,
    new_activations,
    new_dense_activations,
    restore_blocks,
    training_folder,
    whole_model,
)
from pruner_zero.pruning.masks import (
    DenseStatistics,
    Mask,
    Statistics,
    block_statistics,
    masks_of,
    masks_of_cut,
    score_matrix,
    scores_of,
)
from pruner_zero.pruning.matrix import MatrixRecord, open_mask, prune_matrix, recounted
from pruner_zero.pruning.permute import find_movable, permute_block
from pruner_zero.pruning.race import Entry, dense_masks, judged_apart, race, ranked
from pruner_zero.pruning.recipe import Race, Recipe, Scored
from pruner_zero.sparsity.pattern import Lazy, groups
from pruner_zero.sparsity.selection import SemiStructured
from pruner_zero.structure.cut import Cut
from pruner_zero.text.token_windows import Windows
from pruner_zero.training.distillation import check_memory, distillation
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
    """Prune the model by a recipe, in place: masks and steps, cut-out units, distillation.

    Sequential: each block is calibrated on the output of the pruned blocks before it, as Wanda and
    SparseGPT do; G is always of the dense model. One-shot: everything is calibrated on the dense
    model. matrices: what `check_recipe` returned; all matrices, after the same checks, where None;
    where no units are cut out, they alone are trained. `store` keeps the dense statistics of all
    `windows`; where those are of a part of them, another store beside it does. `journal` makes each
    finished block durable; it holds the result of an offloaded model, and its activations between
    two blocks. seed: of all training. undo: units that were cut out come back when it is closed;
    where None they are gone for good. An offloaded model keeps masked units: its files are cut when
    they are saved. Raises PrunerZeroError.
    """
    if language_model.on_disk and journal is None:
        raise ValueError("an offloaded model needs a journal to be pruned into")
    if matrices is None:
        matrices = check_recipe(language_model, recipe, saved=journal is not None)
    everything, train, cut = windows, None, recipe.cut
    distilled = windows
    if recipe.distill and recipe.reconstruct:
        windows, distilled = for_training(windows)
    seen, judged = windows, None
    if isinstance(recipe.masks, Race):
        seen, judged = judged_apart(windows, everything)
    elif cut and cut.compares:
        count = max(1, cut.compares // windows.seqlen)
        seen = replace(windows, tokens=windows.tokens[:count])
    if seen is not everything:
        cache, fingerprint = store.folder.parent, store.settings["model"]
        store = open_store(language_model, seen, folder=cache, fingerprint=fingerprint)
    statistics = DenseStatistics(store, recipe.damping)
    if cut and (cut.when != "masks" or cut.compares):
        # The distillation needs to know which tokens stay.
        calibrate(language_model, seen, recipe.dense_kinds, store)
        cut = _decided(language_model, everything, recipe, cut, statistics)
    if recipe.distill:
        # First, because it needs the dense model's predictions.
        train = distillation(
            language_model,
            distilled,
            recipe.distill,
            seed=seed,
            folder=training_folder(journal, recipe.distill) if journal else None,
            translation=cut.translation if cut else None,
        )
    masks, raced, won = recipe.masks, list[Entry](), dict[Scored, Mapping[str, Mask]]()
    if isinstance(masks, Race):
        assert judged is not None
        judge = partial(_race, language_model, seen, judged, recipe, matrices, statistics, won)
        # A run that goes on keeps the mask of its first start.
        raced = [Entry(**e) for e in (journal.decide("race", judge) if journal else judge())]
        order = ranked(raced)
        masks, raced = recipe.entries[order[0]], [raced[number] for number in order]
        note(
            f"divergence of masks alone on {len(judged)} held-out windows, in nats per token: "
            + ", ".join(map(str, raced))
        )
    if cut:
        cut = cut.prepared(language_model, windows.tokens)
    recipe = recipe.settled(masks, cut)
    calibrate(language_model, seen, recipe.dense_kinds, store)
    run = _Run(language_model, windows, recipe, matrices, statistics, journal, seed, won)
    records = run.blocks() if recipe.has_masks else []
    for record in records:
        if record.note:
            note(f"{record.name}: {record.note}")
    model = language_model.model
    size = cut.size(model) if cut else size_of(model)
    if cut and undo is not None:
        undo.enter_context(cut.undone(model))
    elif cut and not language_model.on_disk:
        cut.cut(model)
    if train is None:
        return Pruned(recipe, records, size, raced=raced)
    # Where units were cut out, all matrices are trained, and experts have other numbers.
    chosen = None if cut else {matrix.name for matrix in matrices}
    with whole_model(language_model, journal, recipe.distill) as whole:
        trained = [m for m in find_matrices(whole) if chosen is None or m.name in chosen]
        return Pruned(recipe, records, size, train(whole, trained), raced)


def _race(
    language_model: LanguageModel,
    seen: Windows,
    judged: Tensor,
    recipe: Recipe,
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
    won: dict[Scored, Mapping[str, Mask]],
) -> list[dict[str, Any]]:
    """What `race` gives, by statistics of the windows `seen`, as JSON values.

    won: takes in the winner, with its masks.
    """
    calibrate(language_model, seen, recipe.dense_kinds, statistics.store)
    masks = [dense_masks(language_model, each, matrices, statistics) for each in recipe.entries]
    entries = race(language_model, judged, recipe.entries, matrices, masks)
    best = ranked(entries)[0]
    won[recipe.entries[best]] = masks[best]
    return [asdict(entry) for entry in entries]


def for_training(windows: Windows) -> tuple[Windows, Windows]:
    """The windows that blocks are trained on, and those of the distillation after it.

    The distillation gains little on windows that the blocks were trained on (benchmarks/why.md):
    each has a half, but where there are too few.
    """
    half = len(windows) // 2
    if half < 2:
        return windows, windows
    parts = (windows.tokens[: len(windows) - half], windows.tokens[-half:])
    return replace(windows, tokens=parts[0]), replace(windows, tokens=parts[1])


def check_recipe(
    language_model: LanguageModel,
    recipe: Recipe,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    weights: bool = True,
    saved: bool = False,
) -> list[Matrix]:
    """The matrices that will be pruned, chosen as by `find_matrices`.

    weights: whether to read all of them, as `check_parameters` does. saved: whether there will be a
    journal. Raises PrunerZeroError for all mistakes that can be found before calibration.
    """
    include = recipe.cut.include if recipe.cut and recipe.cut.include else include
    matrices = find_matrices(language_model.model, include, exclude)
    if recipe.pattern:
        for matrix in matrices:
            recipe.pattern.check(matrix.name, (matrix.weight.shape[0], matrix.weight.shape[1]))
    # Raises PrunerZeroError for an order that is impossible.
    _ = recipe.order
    if weights:
        check_parameters(language_model, matrices)
    if recipe.distill:
        share = recipe.share if recipe.has_masks else 0.0
        cut = recipe.cut is not None
        check_memory(language_model, matrices, share, cut=cut, copied=not saved)
    return matrices


def check_parameters(language_model: LanguageModel, matrices: Sequence[Matrix]) -> None:
    """Raise PrunerZeroError for NaN and infinity, except in matrices that are left out."""
    model = language_model.model
    others = {matrix.parameter_name for matrix in find_matrices(model)}
    names = {id(p): name for name, p in model.named_parameters() if name not in others}

    def named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((names[id(p)], p) for p in module.parameters() if id(p) in names)

    by_block = defaultdict(list)
    for matrix in matrices:
        by_block[matrix.block].append(matrix)
    for index in range(len(find_blocks(model))):
        with language_model.block(index) as block:
            check_weights(by_block[index])
            check_finite(named(block))
            for parameter in block.parameters():
                names.pop(id(parameter), None)
    with language_model.outside():
        check_finite(named(model))


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
        scores = scores_of(
            matrices,
            recipe.metric,
            lambda m: statistics.read(m, recipe.scoring_kinds),
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
    journal: Journal | None
    seed: int
    # The winner of a race that this process ran, with its masks.
    won: Mapping[Scored, Mapping[str, Mask]]

    @torch.no_grad()
    def blocks(self) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all."""
        model, recipe, journal = self.language_model, self.recipe, self.journal
        first, records = (journal.finished, finished_records(journal)) if journal else (0, [])
        last = max(matrix.block for matrix in self.matrices)
        # This looks at dense weights, so it comes before finished blocks are restored.
        masks = self.masks() if first <= last else None
        walk = Walk(model, self.windows.tokens)
        pruned, dense = self.streams(walk, first) if first <= last else (None, None)
        if journal and not model.on_disk:
            restore_blocks(journal, model.model)
            if pruned:
                for index in range(first):
                    with model.block(index) as block:
                        pruned.advance(block, index)
        for index, block in walk.blocks("pruning", first):
            matrices = self.by_block[index]
            inputs: dict[str, Statistics] = {}
            if dense:
                dense.advance(block, index)
            permuted = self.permute(pruned, block, index) if pruned else {}
            if pruned:
                # Where the dense model decides the masks, steps alone need these inputs.
                observed = matrices if masks is None or recipe.steps else []
                inputs = self.inputs(pruned, block, index, observed, recipe.kinds)
            opened: dict[Matrix, OpenMask] = {}
            opens = dense and recipe.opens_masks
            done = list(self.prune(masks, matrices, inputs, opened if opens else None))
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
            if journal:
                hidden = pruned.hidden if pruned else None
                file = hidden if isinstance(hidden, WindowFile) else None
                # Not bound to a name, so that the tensors are freed with the block.
                commit_block(journal, {**model.changed(index, matrices), **permuted}, done, file)
            records += done
        return records

    def streams(self, walk: Walk, finished: int) -> tuple[Stream | None, Stream | None]:
        """The activations of the pruned and of the dense model, where they are needed.

        They are in files of the journal for an offloaded model. The pruned model's stand before the
        first block, for an offloaded model after its `finished` blocks, the dense model's after the
        finished blocks, which are dense at this point.
        """
        recipe, windows = self.recipe, len(self.windows)
        needed = bool(select(InputStatistic, recipe.kinds)) or recipe.reconstruct > 0
        needed |= recipe.permute
        if recipe.order == "one-shot" or not needed:
            return None, None
        journal = self.journal if self.language_model.on_disk else None
        storages: list[Storage | None] = [None, None]
        if journal:
            storages = [
                lambda index: new_activations(journal, index - 1, windows),
                lambda index: new_dense_activations(journal, index - 1, windows),
            ]
        before = last_activations(journal) if journal else None
        # Training takes products in bfloat16 as well.
        fast = recipe.reconstruct > 0
        pruned = walk.carry(storages[0], before, fast=fast)
        if not fast:
            return pruned, None
        dense = walk.carry(storages[1], fast=True)
        for index in range(finished):
            with self.language_model.block(index) as block:
                dense.advance(block, index)
        return pruned, dense

    def permute(self, pruned: Stream, block: nn.Module, index: int) -> dict[str, Tensor]:
        """Bring a loaded block into the order for its masks, where asked for; what changed."""
        recipe, couplings = self.recipe, self.movable.get(index)
        if not couplings:
            return {}
        assert isinstance(recipe.pattern, SemiStructured)

        def score(matrix: Matrix) -> Tensor | None:
            assert recipe.metric is not None
            statistics = self.inputs(pruned, block, index, [matrix], recipe.scoring_kinds)
            return score_matrix(matrix, statistics[matrix.name], recipe.metric)

        by_name = {matrix.name: matrix for matrix in self.by_block[index]}
        model = self.language_model
        changed = permute_block(
            model.model, couplings, block, pruned, recipe.pattern, by_name, score
        )
        # A model on disk has all of a block in its own names.
        return {} if model.on_disk else changed

    def inputs(
        self,
        pruned: Stream,
        block: nn.Module,
        index: int,
        observed: Sequence[Matrix],
        kinds: Collection[Kind],
    ) -> dict[str, Statistics]:
        """The statistics of the inputs that matrices of one block have in the pruned model."""
        if not observed:
            return {}
        collected = pruned.collect(block, index, observed, kinds)
        return block_statistics(collected, self.recipe.damping)

    def masks(self) -> Mapping[str, Mask] | None:
        """The masks of all matrices, where the whole dense model decides them."""
        recipe = self.recipe
        if recipe.cut and recipe.cut.when == "dense":
            return masks_of_cut(self.matrices, recipe.cut)
        assert isinstance(recipe.masks, Scored)
        if recipe.masks.pattern.reach != "model":
            return None
        if recipe.masks in self.won:
            return self.won[recipe.masks]
        return dense_masks(self.language_model, recipe.masks, self.matrices, self.statistics)

    def prune(
        self,
        decided: Mapping[str, Mask] | None,
        matrices: Sequence[Matrix],
        inputs: dict[str, Statistics],
        opened: dict[Matrix, OpenMask] | None,
    ) -> Iterator[MatrixRecord]:
        """Prune the matrices of one loaded block; entries of `inputs` are removed when used.

        decided: the masks where the dense model has decided them. opened: takes in the masks that
        training may choose anew; None where they stay.
        """
        by_name, scored = {matrix.name: matrix for matrix in matrices}, self.recipe.masks
        parts = [[name] for name in by_name]
        if decided is None and isinstance(scored, Scored):
            parts = groups(scored.pattern, {name: m.block for name, m in by_name.items()})
        # All masks of the block, before the first of its weights changes.
        masks = None if decided is None else {name: decided[name] for name in by_name}
        sweep = self.recipe.sweep is not None
        for names in parts:
            group = [by_name[name] for name in names]
            statistics = {matrix: self.read(matrix, inputs) for matrix in group}
            chosen = masks
            if chosen is None:
                assert isinstance(scored, Scored)
                lazy = masks_of(group, scored, statistics.__getitem__, sweep=sweep)
                chosen = {name: lazy[name] for name in names}
            for matrix in group:
                mask, of_matrix = chosen[matrix.name], statistics.pop(matrix)
                if opened is not None and isinstance(scored, Scored):
                    follows = open_mask(matrix, of_matrix, scored, mask)
                    opened |= {matrix: follows} if follows else {}
                yield prune_matrix(matrix, of_matrix, self.recipe, mask)
                self.language_model.release()

    def read(self, matrix: Matrix, inputs: dict[str, Statistics]) -> Statistics:
        """The statistics of one matrix: its entry of `inputs`, else those of the dense model."""
        kinds = self.recipe.kinds if self.recipe.pattern else ()
        if not inputs:
            return self.statistics.read(matrix, kinds)
        dense = self.statistics.read(matrix, set(kinds) - select(InputStatistic, kinds).keys())
        fresh = inputs.pop(matrix.name)
        return replace(fresh, values={**fresh.values, **dense.values})

    @cached_property
    def movable(self) -> Mapping[int, Sequence[Coupling]]:
        """The channels and heads of each block that are brought into another order."""
        model = self.language_model.model
        return find_movable(model, self.matrices) if self.recipe.permute else {}

    @cached_property
    def by_block(self) -> list[list[Matrix]]:
        """The chosen matrices of each block."""
        count = len(find_blocks(self.language_model.model))
        return [[matrix for matrix in self.matrices if matrix.block == i] for i in range(count)]
