"""Choosing blocks or experts to remove, on the dense model, before any matrix is pruned."""

from dataclasses import replace

from pruner_zero.calibration import StatisticsStore
from pruner_zero.metric import Metric
from pruner_zero.models import LanguageModel
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.depth import Blocks, choose_blocks
from pruner_zero.pruning.expert_scores import choose_experts
from pruner_zero.pruning.experts import Experts
from pruner_zero.pruning.method import Method
from pruner_zero.text import Windows


def choose_units(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    store: StatisticsStore,
    *,
    damping: float,
    progress: Progress = SILENT,
) -> Method:
    """The method with the units to remove in its pattern; other methods are returned unchanged.

    The effect of dropped blocks is folded, in place, into blocks that stay, where the pattern says
    so. damping: of the Hessians in scores. Raises what `choose_blocks` and `choose_experts` raise.
    """
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
    return replace(method, pattern=pattern)
