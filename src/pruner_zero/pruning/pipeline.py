"""The order of work: when and on which inputs each block is calibrated, scored and pruned.

From the metric to the weights: in `choice.py` `score_matrix` makes scores of weights and
statistics and the pattern chooses masks by them; `prune_matrix` runs the steps after the mask.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from pruner_zero.calibration import InputStatistic, StatisticsStore, calibrate, select
from pruner_zero.choices import Mode
from pruner_zero.journal import Journal
from pruner_zero.models import (
    LanguageModel,
    Matrix,
    OffloadedModel,
    check_finite,
    check_weights,
    find_blocks,
    find_matrices,
    give_back,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.checkpoint import commit_block, finished_records, restore_blocks
from pruner_zero.pruning.choice import Choice, choose
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.propagation import Propagation
from pruner_zero.pruning.prune_matrix import prune_matrix
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.removal import Removal
from pruner_zero.pruning.statistics import DenseStatistics, Statistics, block_statistics
from pruner_zero.recovery.distillation import check_memory
from pruner_zero.sparsity import groups
from pruner_zero.text.windows import Windows


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
        share, cut = method.pattern.sparsity, isinstance(method.pattern, Removal)
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
def prune_model(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    store: StatisticsStore,
    *,
    mode: Mode = "auto",
    matrices: Sequence[Matrix] | None = None,
    damping: float = 0.01,
    journal: Journal | None = None,
    progress: Progress = SILENT,
) -> list[MatrixRecord]:
    """Prune the model in place; return what was done to each matrix.

    Sequential: each block is calibrated on the output of the pruned blocks before it, as
    Wanda and SparseGPT do; G is always of the dense model. One-shot: everything is
    calibrated on the dense model. matrices: what `check_plan` returned; all matrices, after the
    same checks, where None. `store` keeps the dense statistics; damping: the share of the mean
    diagonal added to Hessians. `journal` makes each finished block durable; it holds the result
    of an offloaded model, and its activations between two blocks. Raises PrunerZeroError.
    """
    order = method.mode(mode)
    if isinstance(language_model, OffloadedModel) and journal is None:
        raise ValueError("an offloaded model needs a journal to be pruned into")
    if matrices is None:
        matrices = check_plan(language_model, method)
    calibrate(language_model, windows, method.dense_kinds(order), store, progress=progress)
    run = _Run(
        language_model,
        windows,
        method,
        matrices,
        DenseStatistics(store, damping),
        damping,
        progress,
        journal,
        propagated=order == "sequential" and bool(select(InputStatistic, method.kinds)),
    )
    records = run.blocks()
    for record in records:
        if record.note:
            progress.note(f"{record.name}: {record.note}")
    return records


@dataclass(frozen=True)
class _Run:
    """The parts of one run."""

    language_model: LanguageModel
    windows: Windows
    method: Method
    matrices: Sequence[Matrix]
    statistics: DenseStatistics
    damping: float
    progress: Progress
    journal: Journal | None
    propagated: bool

    def blocks(self) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all."""
        model, method, journal = self.language_model, self.method, self.journal
        # This looks at dense weights, so it comes before finished blocks are restored.
        dense = self.dense_choice() if method.pattern.reach == "model" else None
        first, records = (journal.finished, finished_records(journal)) if journal else (0, [])
        last = max(matrix.block for matrix in self.matrices)
        propagation = None
        if self.propagated and first <= last:
            tokens = self.windows.tokens
            propagation = Propagation(model, tokens, journal, asymmetric=method.asymmetric)
        if journal and not isinstance(model, OffloadedModel):
            restore_blocks(journal, self.matrices)
        if propagation:
            propagation.catch_up(model, first)
        unfinished = range(first, len(self.by_block))
        for index in self.progress.track(unfinished, "pruning", len(unfinished)):
            matrices = self.by_block[index]
            with model.block(index) as block:
                inputs: dict[str, Statistics] = {}
                if propagation:
                    collected = propagation.observe(block, index, matrices, method.kinds)
                    inputs = block_statistics(collected, self.damping)
                done = list(self.prune(dense, matrices, inputs))
                if index == last:
                    # No block after it has matrices, so nothing needs its outputs.
                    propagation = None
                if propagation:
                    propagation.advance(block, index)
                if journal:
                    hidden = propagation.file if propagation else None
                    # Not bound to a name, so that the tensors are freed with the block.
                    commit_block(journal, model.changed(index, matrices), done, hidden)
            records += done
        return records

    def dense_choice(self) -> Choice:
        """The masks of all matrices, by the scores of the whole dense model."""

        def read(matrix: Matrix) -> Statistics:
            return self.statistics.read(matrix, self.method.scoring_kinds)

        model, progress = self.language_model, self.progress
        hold = 0 if isinstance(model, OffloadedModel) else None
        return choose(
            self.matrices, self.method, read, load=model.block, hold=hold, progress=progress
        )

    def prune(
        self, dense: Choice | None, matrices: Sequence[Matrix], inputs: dict[str, Statistics]
    ) -> Iterator[MatrixRecord]:
        """Prune the matrices of one loaded block; entries of `inputs` are removed when used.

        dense: the masks where the scores of the dense model have chosen them.
        """
        by_name = {matrix.name: matrix for matrix in matrices}
        blocks = {name: matrix.block for name, matrix in by_name.items()}
        # All masks of the block, before the first of its weights changes.
        chosen = None if dense is None else dense.of(blocks)
        for names in (
            groups(self.method.pattern, blocks) if chosen is None else [[name] for name in blocks]
        ):
            group = [by_name[name] for name in names]
            statistics = {matrix: self.read(matrix, inputs) for matrix in group}
            choice = chosen or choose(group, self.method, statistics.__getitem__).of(names)
            for matrix in group:
                yield prune_matrix(matrix, statistics.pop(matrix), self.method, choice)
                if isinstance(self.language_model, OffloadedModel):
                    give_back()

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
