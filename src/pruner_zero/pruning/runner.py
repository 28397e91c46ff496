"""The runner: what a recipe says, part by part, from the dense model to the pruned one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruner_zero.calibration.calibrate import StatisticsStore, calibrate, open_store
from pruner_zero.calibration.statistics import GradientStatistic, Kind, select
from pruner_zero.journal import Journal
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix, find_matrices, size_of
from pruner_zero.progress import note
from pruner_zero.pruning.blocks import Blocks
from pruner_zero.pruning.checkpoint import FinishedBlocks, training_folder, whole_model
from pruner_zero.pruning.checks import check_recipe
from pruner_zero.pruning.masks import DenseStatistics, scores_of
from pruner_zero.pruning.matrix import MatrixRecord
from pruner_zero.pruning.race import Entry, Raced, held_out, hold_race
from pruner_zero.pruning.recipe import Race, Recipe
from pruner_zero.sparsity.pattern import Lazy
from pruner_zero.structure.cut import Cut
from pruner_zero.text.token_windows import Windows
from pruner_zero.training.distillation import distillation
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
    finished = FinishedBlocks(language_model, journal)
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
        raced = hold_race(language_model, judged, masks, matrices, statistics, finished)
        masks = raced.winner
    if cut:
        cut = cut.prepared(language_model, windows.tokens)
    recipe = recipe.settled(masks, cut)
    calibrate(language_model, seen, dense_kinds(recipe), store)
    records: list[MatrixRecord] = []
    if not cut or cut.when != "text":
        blocks = Blocks(language_model, windows, recipe, matrices, statistics, finished, raced)
        records = blocks.prune(seed)
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
