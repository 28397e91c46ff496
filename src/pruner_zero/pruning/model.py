"""The whole model: when, and on which inputs, each block is calibrated, masked and changed.

`masks.py` makes scores of weights and statistics, and the pattern chooses masks by them;
`matrix.py` writes the zeros and runs the steps after the mask.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from pruner_zero.calibration.calibrate import calibrate, open_store
from pruner_zero.calibration.statistics import InputStatistic, select
from pruner_zero.calibration.store import StatisticsStore
from pruner_zero.calibration.walk import Walk, WindowFile
from pruner_zero.choices import Mode
from pruner_zero.journal import Journal
from pruner_zero.metric.metric import Metric
from pruner_zero.models.blocks import Activations
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import (
    Matrix,
    check_finite,
    check_weights,
    find_blocks,
    find_matrices,
)
from pruner_zero.progress import note, track
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
from pruner_zero.pruning.masks import Mask, masks_of, scores_of
from pruner_zero.pruning.matrix import MatrixRecord, prune_matrix
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.race import Entry, best_mask, judged_apart
from pruner_zero.pruning.statistics import DenseStatistics, Statistics, block_statistics
from pruner_zero.sparsity.pattern import Lazy, groups
from pruner_zero.text.windows import Windows
from pruner_zero.training.distillation import check_memory, distillation
from pruner_zero.training.reconstruction import reconstruct
from pruner_zero.training.train import Point


@dataclass(frozen=True)
class Pruned:
    """The outcome of a method.

    method: with the units that it removed, and the mask that won the race. size: the number of
    parameters of the pruned model and their bytes. curve: the learning curve of the distillation.
    raced: the masks of the race, the best first.
    """

    method: Method
    records: list[MatrixRecord]
    size: tuple[int, int]
    curve: Sequence[Point] = ()
    raced: Sequence[Entry] = ()


def prune_model(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    store: StatisticsStore,
    *,
    mode: Mode = "auto",
    matrices: Sequence[Matrix] | None = None,
    seed: int = 0,
    journal: Journal | None = None,
    undo: ExitStack | None = None,
) -> Pruned:
    """Prune the model by one method, in place: masks and steps, cut-out units, distillation.

    Sequential: each block is calibrated on the output of the pruned blocks before it, as Wanda and
    SparseGPT do; G is always of the dense model. One-shot: everything is calibrated on the dense
    model. matrices: what `check_plan` returned; all matrices, after the same checks, where None;
    where no units are cut out, they alone are trained. `store` keeps the dense statistics, one
    beside it those of a race of masks.
    `journal` makes each finished block durable; it holds the result of an offloaded model, and
    its activations between two blocks. seed: of all training. undo: units that were cut out
    come back when it is closed; where None they are gone for good. An offloaded model keeps masked
    units: its files are cut when they are saved. Raises PrunerZeroError.
    """
    if language_model.on_disk and journal is None:
        raise ValueError("an offloaded model needs a journal to be pruned into")
    if matrices is None:
        matrices = check_plan(language_model, method)
    everything, train = windows, None
    if not method.pattern.masks:
        # No statistic decides, and the distillation needs to know what stays.
        pattern = method.pattern.prepare(language_model, windows.tokens)
        method = replace(method, pattern=pattern)
    if method.distill:
        windows, distilled = for_training(windows) if method.reconstruct else (windows, windows)
        # First, because it needs the dense model's predictions.
        folder = training_folder(journal, method.distill) if journal else None
        train = distillation(
            language_model,
            distilled,
            method.distill,
            seed=seed,
            folder=folder,
            translation=method.pattern.translation,
        )
    order = method.mode(mode)
    seen, judged = windows, None
    if method.rivals:
        seen, judged = judged_apart(windows, everything)
    if seen is not everything:
        cache, fingerprint = store.folder.parent, store.settings["model"]
        store = open_store(language_model, seen, folder=cache, fingerprint=fingerprint)
    calibrate(language_model, seen, method.dense_kinds(order), store)
    statistics = DenseStatistics(store, method.damping)
    raced: Sequence[Entry] = ()
    if judged is not None:
        method, raced = best_mask(language_model, judged, method, matrices, statistics)
    needs_inputs = bool(select(InputStatistic, method.kinds)) or method.reconstruct > 0
    propagated = order == "sequential" and needs_inputs
    metric = method.metric
    if method.pattern.decides:
        method = _decided(language_model, windows, method, statistics)
    run = _Run(language_model, windows, method, matrices, statistics, journal, propagated, seed)
    records = run.blocks() if method.pattern.masks else []
    method = replace(method, metric=metric)
    for record in records:
        if record.note:
            note(f"{record.name}: {record.note}")
    model, pattern = language_model.model, method.pattern
    size = pattern.size(model)
    if undo is not None:
        undo.enter_context(pattern.shrunk(model))
    elif not language_model.on_disk:
        pattern.shrink(model)
    if train is None:
        return Pruned(method, records, size, raced=raced)
    # Where units were cut out, all matrices are trained, and experts have other numbers.
    chosen = None if pattern.unit else {matrix.name for matrix in matrices}
    with whole_model(language_model, journal, method.distill) as whole:
        trained = [m for m in find_matrices(whole) if chosen is None or m.name in chosen]
        return Pruned(method, records, size, train(whole, trained), raced)


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


def check_plan(
    language_model: LanguageModel,
    method: Method,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    weights: bool = True,
) -> list[Matrix]:
    """The matrices that will be pruned, chosen as by `find_matrices`.

    weights: whether to read all of them, as `check_parameters` does. Raises PrunerZeroError for all
    mistakes that can be found before calibration.
    """
    matrices = find_matrices(language_model.model, include, exclude)
    for matrix in matrices:
        method.pattern.check(matrix.name, (matrix.weight.shape[0], matrix.weight.shape[1]))
    if weights:
        check_parameters(language_model, matrices)
    if method.distill:
        share = method.pattern.sparsity if method.pattern.masks else 0.0
        cut = method.pattern.unit is not None
        check_memory(language_model, matrices, share, cut=cut)
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
    method: Method,
    statistics: DenseStatistics,
) -> Method:
    """The method with the units that its pattern removes, and the dense model prepared for it."""
    pattern, model = method.pattern, language_model.model
    matrices = find_matrices(model)
    if kind := pattern.statistic:
        blocks = {matrix.name: matrix.block for matrix in matrices}
        read = statistics.store.read
        scores = Lazy(blocks, lambda name: read(kind, blocks[name], [name])[name])
    else:
        scores = scores_of(
            matrices, method.metric, lambda m: statistics.read(m, method.scoring_kinds), hold=0
        )
    pattern = pattern.decide(model, scores).prepare(language_model, windows.tokens)
    # The pattern names the units by now: the masks need no scores of another metric.
    return replace(method, metric=Metric.of("magnitude"), pattern=pattern)


@dataclass(frozen=True)
class _Run:
    """The parts of one run."""

    language_model: LanguageModel
    windows: Windows
    method: Method
    matrices: Sequence[Matrix]
    statistics: DenseStatistics
    journal: Journal | None
    propagated: bool
    seed: int

    @torch.no_grad()
    def blocks(self) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all."""
        model, method, journal = self.language_model, self.method, self.journal
        # This looks at dense weights, so it comes before finished blocks are restored.
        dense = self.dense_masks() if method.pattern.reach == "model" else None
        first, records = (journal.finished, finished_records(journal)) if journal else (0, [])
        last = max(matrix.block for matrix in self.matrices)
        walk = self.walk(first) if self.propagated and first <= last else None
        if journal and not self.language_model.on_disk:
            restore_blocks(journal, self.matrices)
            if walk:
                for index in range(first):
                    with model.block(index) as block:
                        walk.advance(block, index)
        unfinished = range(first, len(self.by_block))
        for index in track(unfinished, "pruning", len(unfinished)):
            matrices = self.by_block[index]
            with model.block(index) as block:
                inputs: dict[str, Statistics] = {}
                if walk:
                    # Where the dense model decides the masks, steps alone need these inputs.
                    observed = matrices if dense is None or method.steps else []
                    collected = walk.collect(block, index, observed, method.kinds)
                    inputs = block_statistics(collected, method.damping)
                done = list(self.prune(dense, matrices, inputs))
                if walk and matrices and method.reconstruct:
                    self.reconstruct(walk, block, index)
                if index == last:
                    # No block after it has matrices, so nothing needs its outputs.
                    walk = None
                if walk:
                    walk.advance(block, index)
                if journal:
                    hidden = walk.hidden if walk and isinstance(walk.hidden, WindowFile) else None
                    # Not bound to a name, so that the tensors are freed with the block.
                    commit_block(journal, model.changed(index, matrices), done, hidden)
            records += done
        return records

    def walk(self, finished: int) -> Walk:
        """The walk over the pruned blocks, in files of the journal for an offloaded model.

        It stands before the first block, for an offloaded model after its `finished` blocks.
        Asymmetric steps and reconstruction need a walk over the dense blocks beside it, which are
        dense at this point.
        """
        model, tokens, windows = self.language_model, self.windows.tokens, len(self.windows)
        journal = self.journal if self.language_model.on_disk else None

        def storage(index: int) -> Activations:
            return new_activations(journal, index - 1, windows) if journal else []

        def dense_storage(index: int) -> Activations:
            return new_dense_activations(journal, index - 1, windows) if journal else []

        dense = None
        if self.method.asymmetric or self.method.reconstruct:
            dense = Walk(model, tokens, dense_storage)
            for index in range(finished):
                with model.block(index) as block:
                    dense.advance(block, index, observed=True)
        hidden = last_activations(journal) if journal else None
        return Walk(model, tokens, storage, hidden, dense, compared=self.method.asymmetric)

    def dense_masks(self) -> Mapping[str, Mask]:
        """The masks of all matrices, by the scores of the whole dense model."""

        def read(matrix: Matrix) -> Statistics:
            return self.statistics.read(matrix, self.method.scoring_kinds)

        load, hold = self.language_model.block, 0 if self.language_model.on_disk else None
        return masks_of(self.matrices, self.method, read, load=load, hold=hold)

    def prune(
        self,
        dense: Mapping[str, Mask] | None,
        matrices: Sequence[Matrix],
        inputs: dict[str, Statistics],
    ) -> Iterator[MatrixRecord]:
        """Prune the matrices of one loaded block; entries of `inputs` are removed when used.

        dense: the masks where the scores of the dense model have chosen them.
        """
        by_name = {matrix.name: matrix for matrix in matrices}
        blocks = {name: matrix.block for name, matrix in by_name.items()}
        # All masks of the block, before the first of its weights changes.
        chosen = None if dense is None else {name: dense[name] for name in blocks}
        for names in (
            groups(self.method.pattern, blocks) if chosen is None else [[name] for name in blocks]
        ):
            group = [by_name[name] for name in names]
            statistics = {matrix: self.read(matrix, inputs) for matrix in group}
            masks = chosen
            if masks is None:
                lazy = masks_of(group, self.method, statistics.__getitem__)
                masks = {name: lazy[name] for name in names}
            for matrix in group:
                yield prune_matrix(matrix, statistics.pop(matrix), self.method, masks[matrix.name])
                if disk := self.language_model.on_disk:
                    disk.release()

    def reconstruct(self, walk: Walk, block: nn.Module, index: int) -> None:
        """Train a pruned block towards the outputs that the dense block has in the dense model."""
        assert walk.dense is not None
        reconstruct(
            block,
            self.by_block[index],
            walk.hidden,
            walk.arguments[index],
            walk.dense.hidden,
            self.method.reconstruct,
            self.seed,
        )

    def read(self, matrix: Matrix, inputs: dict[str, Statistics]) -> Statistics:
        """The statistics of one matrix: its entry of `inputs`, else those of the dense model."""
        kinds = self.method.kinds
        if not inputs:
            return self.statistics.read(matrix, kinds)
        dense = self.statistics.read(matrix, kinds - select(InputStatistic, kinds).keys())
        fresh = inputs.pop(matrix.name)
        return replace(fresh, values={**fresh.values, **dense.values})

    @cached_property
    def by_block(self) -> list[list[Matrix]]:
        """The chosen matrices of each block."""
        count = len(find_blocks(self.language_model.model))
        return [[matrix for matrix in self.matrices if matrix.block == i] for i in range(count)]
