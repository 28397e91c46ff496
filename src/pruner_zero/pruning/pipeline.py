"""The order of work: which block is calibrated on what, scored and pruned when."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from pruner_zero.calibration import (
    StatisticsStore,
    calibrate,
    collect_inputs,
    input_kinds,
)
from pruner_zero.choices import Mode
from pruner_zero.models import (
    Activations,
    Arguments,
    BlockCalls,
    LanguageModel,
    Matrix,
    OffloadedModel,
    check_tokens,
    check_weights,
    find_blocks,
    find_matrices,
    give_back,
    run_block,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.allocation import Allocator
from pruner_zero.pruning.checkpoint import Checkpoint
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.scoring import (
    Job,
    check_shapes,
    score_matrix,
)
from pruner_zero.pruning.statistics import DenseStatistics, Statistics, block_statistics
from pruner_zero.sparsity import Allocation, GlobalThreshold, global_threshold
from pruner_zero.text import Windows


@dataclass(frozen=True)
class Selection:
    """Which matrices are pruned, as shell patterns over their names, and how calibration counts.

    damping: the share of the mean diagonal added to the Hessian.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float = 0.01


def check_plan(
    language_model: LanguageModel, windows: Windows, method: Method, selection: Selection
) -> list[Matrix]:
    """The matrices that will be pruned. Raises PrunerZeroError for all that can be known before."""
    matrices = find_matrices(language_model.model, selection.include, selection.exclude)
    check_shapes(matrices, method)
    if isinstance(method.allocation, Allocation):
        method.allocation.check([matrix.name for matrix in matrices])
    check_tokens(language_model.model, windows.tokens)
    for index in range(len(find_blocks(language_model.model))):
        own = [matrix for matrix in matrices if matrix.block == index]
        if own:
            with language_model.block(index):
                check_weights(own)
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
    matrices: Sequence[Matrix] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = SILENT,
) -> list[MatrixRecord]:
    """Prune the model in place and tell what was done to each matrix.

    Sequential: each block is calibrated on the output of the pruned blocks before it, as
    Wanda and SparseGPT do; G is always of the dense model. One-shot: everything is
    calibrated on the dense model. `store` keeps the dense statistics; `checkpoint` makes
    each finished block durable, and is the only place where the result of an offloaded model
    is. matrices: what `check_plan` gave, where it was called before. An offloaded model's
    activations between two blocks are kept in the checkpoint alone. Raises PrunerZeroError.
    """
    order = method.mode(mode)
    if isinstance(language_model, OffloadedModel) and checkpoint is None:
        raise ValueError("an offloaded model needs a checkpoint to be pruned into")
    if matrices is None:
        matrices = check_plan(language_model, windows, method, selection)
    calibrate(
        language_model,
        windows,
        method.dense_kinds(order),
        store,
        progress=progress,
    )
    run = _Run(
        language_model,
        windows,
        method,
        matrices,
        selection,
        progress,
        checkpoint,
        propagated=order == "sequential" and bool(input_kinds(method.kinds)),
        on_disk=isinstance(language_model, OffloadedModel),
        statistics=DenseStatistics(store, matrices, selection.damping),
    )
    scores = run.global_scores() if method.scope == "global" else None
    records = run.blocks(scores, run.shares())
    for record in records:
        if record.note:
            progress.note(f"{record.name}: {record.note}")
    return records


@dataclass(frozen=True)
class _GlobalScores:
    """All matrices competing with each other, by dense weights and statistics.

    kept: scores by matrix name where all fit in memory; elsewhere they are computed again.
    """

    threshold: GlobalThreshold
    kept: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class _Run:
    language_model: LanguageModel
    windows: Windows
    method: Method
    matrices: Sequence[Matrix]
    selection: Selection
    progress: Progress
    checkpoint: Checkpoint | None
    propagated: bool
    on_disk: bool
    statistics: DenseStatistics

    def global_scores(self) -> _GlobalScores:
        """The scores of all matrices, and where they part."""
        sparsity = self.method.pattern.sparsity
        if isinstance(self.language_model, OffloadedModel):
            return _GlobalScores(global_threshold(self.scores, sparsity))
        kept = dict(self.scores())
        return _GlobalScores(global_threshold(kept.items, sparsity), kept)

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """The scores of one matrix after the other, with their names.

        A matrix that calibration never reached has no score to compete with.
        """
        for index in self.progress.track(range(self.depth), "scores"):
            with self.language_model.block(index):
                for matrix in self.own(index):
                    score = self.score(matrix)
                    if score is not None:
                        yield matrix.name, score

    def score(self, matrix: Matrix) -> Tensor | None:
        """The scores of a matrix whose block is loaded, by the dense statistics."""
        known = self.statistics.read(matrix, self.method.scoring_kinds)
        return score_matrix(matrix, known, self.method.metric)

    def shares(self) -> dict[str, Method]:
        """The method of each matrix where they are not all pruned alike, by name."""
        if self.method.allocation == "uniform":
            return {}
        allocator = Allocator(self.method)
        kinds = self.method.allocation_kinds
        for index in self.progress.track(range(self.depth), "allocation", self.depth):
            own = self.own(index)
            with self.language_model.block(index):
                known = {matrix.name: self.statistics.read(matrix, kinds) for matrix in own}
                allocator.see(index, own, known)
        return {
            name: replace(self.method, pattern=pattern)
            for name, pattern in allocator.patterns().items()
        }

    def blocks(
        self, scores: _GlobalScores | None, methods: dict[str, Method]
    ) -> list[MatrixRecord]:
        """Prune all blocks that are not finished yet; the records of all."""
        records: list[MatrixRecord] = []
        first, hidden, calls, dense = 0, None, None, None
        if self.checkpoint:
            first, records = self.checkpoint.finished, self.checkpoint.records()
        if self.propagated:
            hidden, calls = self.activations()
            if self.method.asymmetric:
                dense = self.dense_activations(first, calls)
        if self.checkpoint and not isinstance(self.language_model, OffloadedModel):
            self.checkpoint.restore(self.matrices)
        rest = [matrix for matrix in self.matrices if matrix.block >= first]
        pruned = map(Job.run, self.jobs(rest, {}, scores, methods))
        for index in self.progress.track(range(first, self.depth), "pruning", self.depth - first):
            own = self.own(index)
            arguments = calls.arguments[index] if calls else []
            with self.language_model.block(index) as block:
                if hidden is not None:
                    found, dense = self.observe(block, index, hidden, arguments, dense)
                    pruned = map(Job.run, self.jobs(own, found, scores, methods))
                done = self.take(pruned, len(own))
                if hidden is not None:
                    outputs = self.place(index)
                    _run_windows(block, hidden, arguments, outputs)
                    hidden = outputs
                if self.checkpoint:
                    # Named nowhere, lest it outlive the block.
                    self.checkpoint.commit(self.language_model.changed(index, own), done, hidden)
            records += done
        return records

    def observe(
        self,
        block: nn.Module,
        index: int,
        hidden: Activations,
        arguments: Sequence[Arguments],
        dense: Activations | None,
    ) -> tuple[dict[str, Statistics], Activations | None]:
        """What enters the matrices of one loaded block, and what the dense model hands on."""
        own = self.own(index)
        nothing: deque[Tensor] = deque(maxlen=0)
        further = None if dense is None else self.dense_place(index)
        if not own:
            if dense is not None and further is not None:
                _run_windows(block, dense, arguments, further)
            return {}, further
        found, _ = collect_inputs(
            block,
            own,
            hidden,
            arguments,
            self.method.kinds,
            outputs=nothing,
            dense=dense,
            dense_outputs=further,
        )
        return block_statistics(found, self.selection.damping), further

    def take(self, pruned: Iterator[MatrixRecord], count: int) -> list[MatrixRecord]:
        """The records of the next matrices, those of one loaded block."""
        done = []
        for record in islice(pruned, count):
            done.append(record)
            if isinstance(self.language_model, OffloadedModel):
                give_back()
        return done

    def jobs(
        self,
        matrices: Iterable[Matrix],
        found: dict[str, Statistics],
        scores: _GlobalScores | None,
        methods: dict[str, Method],
    ) -> Iterator[Job]:
        """How to prune each of `matrices` by what was `found`, else by the dense model."""
        for matrix in matrices:
            yield self.job(matrix, found, scores, methods.get(matrix.name, self.method))

    def job(
        self,
        matrix: Matrix,
        found: dict[str, Statistics],
        scores: _GlobalScores | None,
        method: Method,
    ) -> Job:
        """How to prune one matrix; its entry of `found` is removed, to be freed with the job."""
        kinds = self.method.kinds
        known = self.statistics.read(matrix, kinds - input_kinds(kinds).keys() if found else kinds)
        if found:
            known = replace(found.pop(matrix.name), G=known.G)
        mask = self.mask(matrix, scores) if scores else None
        return Job(matrix, known, method, mask)

    def mask(self, matrix: Matrix, scores: _GlobalScores) -> Tensor | None:
        """The part of the global mask that lies in `matrix`; None where it has no scores."""
        kept = scores.kept
        score = self.score(matrix) if kept is None else kept.pop(matrix.name, None)
        return None if score is None else scores.threshold.mask(score, matrix.name)

    def activations(self) -> tuple[Activations, BlockCalls]:
        """The input of the next block, and how the model calls its blocks."""
        tokens = self.windows.tokens
        started = self.checkpoint.hidden() if self.checkpoint else None
        if started is None:
            place = self.place(-1)
            calls = self.language_model.block_calls(tokens, place)
            return place, calls
        nothing: deque[Tensor] = deque(maxlen=0)
        calls = self.language_model.block_calls(tokens, nothing)
        return started if self.on_disk else list(started), calls

    def dense_activations(self, first: int, calls: BlockCalls) -> Activations:
        """What the dense model hands to block `first`; its weights are still the dense ones."""
        dense: Activations = self.dense_place(-1)
        self.language_model.block_calls(self.windows.tokens, dense)
        for index in range(first):
            with self.language_model.block(index) as block:
                outputs = self.dense_place(index)
                _run_windows(block, dense, calls.arguments[index], outputs)
                dense = outputs
        return dense

    def dense_place(self, index: int) -> Activations:
        """Where the dense model's output of a block goes, that of the embeddings being −1."""
        if self.on_disk and self.checkpoint:
            return self.checkpoint.dense_activations(index, len(self.windows.tokens))
        return []

    def place(self, index: int) -> Activations:
        """Where the output of a block goes, that of the embeddings being −1."""
        if self.on_disk and self.checkpoint:
            return self.checkpoint.activations(index, len(self.windows.tokens))
        return []

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(find_blocks(self.language_model.model))

    def own(self, block: int) -> list[Matrix]:
        """The chosen matrices of one block."""
        return [matrix for matrix in self.matrices if matrix.block == block]


def _run_windows(
    block: nn.Module,
    hidden: Activations,
    arguments: Sequence[Arguments],
    outputs: Activations,
) -> None:
    """Append the output of one loaded block for every window to `outputs`."""
    for one, rest in zip(hidden, arguments, strict=True):
        outputs.append(run_block(block, one, rest))
