"""The scores of experts: REAP's, or the totals of a metric over their matrices."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from pruner_zero.calibration import StatisticsStore, calibrate
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, Mixtures, find_matrices, in_float32
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.experts import Experts
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.scoring import score_matrix
from pruner_zero.pruning.statistics import DenseStatistics
from pruner_zero.pruning.structured import signed_squares
from pruner_zero.text.windows import Windows


def choose_experts(
    language_model: LanguageModel,
    windows: Windows,
    method: Method,
    asked: Experts,
    store: StatisticsStore,
    *,
    damping: float,
    progress: Progress = SILENT,
) -> Experts:
    """The pattern `asked` of `method`, with the scores of all experts of the dense model.

    The scores are those of `reap_scores`, or with a metric the signed sums of squared scores of the
    matrix that gives an expert's outputs; `store` keeps the statistics, damping is that of the
    Hessian behind the terminal D. Raises PrunerZeroError
    where the metric cannot score a matrix.
    """
    assert asked.mixtures is not None
    if not asked.by_metric:
        scores = reap_scores(language_model, windows.tokens, asked.mixtures, progress)
        return replace(asked, scores=scores)
    kinds = method.scoring_kinds
    calibrate(language_model, windows, kinds, store, progress=progress)
    consumers = [f"{mixture.consumer}*" for mixture in asked.mixtures.blocks]
    matrices = find_matrices(language_model.model, consumers)
    statistics = DenseStatistics(store, damping)
    totals: dict[int, list[float | None]] = {}
    for matrix in progress.track(matrices, "expert scores", len(matrices)):
        score = score_matrix(matrix, statistics.read(matrix, kinds), method.metric)
        total = None
        if score is not None:
            total = sum(float(part.sum()) for part in signed_squares(score, matrix.name))
        totals.setdefault(matrix.block, []).append(total)
    return replace(asked, scores=totals)


@torch.no_grad()
def reap_scores(
    language_model: LanguageModel, tokens: Tensor, mixtures: Mixtures, progress: Progress = SILENT
) -> dict[int, list[float | None]]:
    """For every expert, the mean over its tokens of router weight times norm of its output.

    tokens: windows (n, seqlen). The router weight is the weight that the model multiplies the
    output with. Returns scores by block number; None for an expert that no token reaches. Raises
    PrunerZeroError where a score is not finite, as where activations overflow.
    Source: REAP (Lasby et al. 2025, 2510.13999), equation 9.
    """
    model, count = language_model.model, mixtures.count
    sums = {mixture.block: [0.0] * count for mixture in mixtures.blocks}
    reached = {mixture.block: [0] * count for mixture in mixtures.blocks}

    def add(block: int, experts: nn.Module, given: tuple[Tensor, ...]) -> None:
        hidden, chosen, weights = given
        for expert in chosen.unique().tolist():
            place, slot = torch.where(chosen == expert)
            # Called alone and with weight 1, an expert gives its own outputs.
            alone = chosen[place, slot][:, None]
            outputs = experts.forward(hidden[place], alone, torch.ones_like(weights[place, :1]))
            norms = outputs.float().norm(dim=-1)
            sums[block][expert] += float((weights[place, slot].float() * norms).sum())
            reached[block][expert] += len(place)

    with in_float32(model), ExitStack() as hooks:
        for mixture in mixtures.blocks:
            experts = model.get_submodule(mixture.experts)
            hook = partial(add, mixture.block)
            hooks.enter_context(experts.register_forward_pre_hook(hook))
        for window in progress.track(tokens, "expert scores", len(tokens)):
            model.base_model(window[None].to(language_model.device), use_cache=False)
    for block, totals in sums.items():
        if not all(map(isfinite, totals)):
            raise PrunerZeroError(
                f"the experts of block {block} cannot be scored, since their outputs are not "
                "finite: choose --dtype bfloat16 or float32, or repair the checkpoint"
            )
    return {
        block: [total / n if n else None for total, n in zip(totals, reached[block], strict=True)]
        for block, totals in sums.items()
    }
