"""One method from the dense model to the pruned one, as `prune` and `compare` run it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruner_zero.calibration import StatisticsStore
from pruner_zero.choices import Mode
from pruner_zero.journal import Journal
from pruner_zero.metric import Metric
from pruner_zero.models import LanguageModel, Matrix, OffloadedModel, find_matrices, size_of
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.depth import Blocks, choose_blocks
from pruner_zero.pruning.expert_scores import choose_experts
from pruner_zero.pruning.experts import Experts
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.pipeline import prune_model
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.removal import Removal
from pruner_zero.recovery.distillation import distillation
from pruner_zero.text.windows import Windows

if TYPE_CHECKING:
    from pruner_zero.recovery.train import Point


@dataclass(frozen=True)
class Pruned:
    """The outcome of a method.

    method: with the units that it removed. size: the number of parameters of the pruned model and
    their bytes. curve: the learning curve of the distillation.
    """

    method: Method
    records: list[MatrixRecord]
    size: tuple[int, int]
    curve: "Sequence[Point]" = ()


def run_method(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    store: StatisticsStore,
    *,
    mode: Mode,
    matrices: Sequence[Matrix],
    damping: float,
    seed: int = 0,
    journal: Journal | None = None,
    undo: ExitStack | None = None,
    progress: Progress = SILENT,
) -> Pruned:
    """Choose blocks or experts on the dense model, prune, cut out the units, distill: in place.

    mode, matrices, damping, journal: as `prune_model` takes them; where no units are cut out,
    only `matrices` are trained. seed: of the distillation.
    undo: units that were cut out come back when it is closed; where None they are gone for good. An
    offloaded model keeps masked units: its files are cut when they are saved. Raises
    PrunerZeroError.
    """
    train = None
    if method.distill:
        # First, because it keeps a copy of the dense model.
        folder = journal.folder / f"training-{method.distill}" if journal else None
        train = distillation(
            language_model, windows, method.distill, seed=seed, folder=folder, progress=progress
        )
    pattern = method.pattern
    if isinstance(pattern, Blocks):
        pattern = choose_blocks(language_model, windows.tokens, pattern, progress)
        if pattern.folds:
            pattern = pattern.fold(language_model, windows.tokens, progress)
    elif isinstance(pattern, Experts):
        pattern = choose_experts(
            language_model, windows, method, pattern, store, damping=damping, progress=progress
        )
        # The pattern names the chosen experts: the masks need no scores of another metric.
        method = replace(method, metric=Metric.of("magnitude"))
    method = replace(method, pattern=pattern)
    records = prune_model(
        language_model,
        windows,
        method,
        store,
        mode=mode,
        matrices=matrices,
        damping=damping,
        journal=journal,
        progress=progress,
    )
    model, size = language_model.model, size_of(language_model.model)
    if isinstance(pattern, Removal):
        size = pattern.size(model)
        if undo is not None:
            undo.enter_context(pattern.shrunk(model))
        elif not isinstance(language_model, OffloadedModel):
            pattern.shrink(model)
    if train is None:
        return Pruned(method, records, size)
    # Where units were cut out, all matrices are trained, and experts have other numbers.
    trained = find_matrices(model) if isinstance(pattern, Removal) else matrices
    return Pruned(method, records, size, train(trained))
