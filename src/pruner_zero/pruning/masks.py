"""The statistics of matrices, their scores by a metric, and the masks that a pattern chooses.

Matrices with one input share one Hessian.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruner_zero.calibration.calibrate import StatisticsStore
from pruner_zero.calibration.statistics import (
    ForwardStatistic,
    GradientStatistic,
    InputStatistic,
    Kind,
    MatrixStatistics,
    select,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import TERMINALS, Expression, collected_for
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.scoring import ScoreError, score
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import Matrix
from pruner_zero.progress import track
from pruner_zero.sparsity.hessian import Hessian, shrinkage_for
from pruner_zero.sparsity.pattern import Lazy, Pattern, groups

if TYPE_CHECKING:
    # The search takes masks from here and knows no recipes or cuts.
    from pruner_zero.pruning.recipe import Scored
    from pruner_zero.structure.cut import Cut


# The statistics that the Hessian is made of.
_OF_HESSIAN = frozenset({"gram", "tokens"})


@dataclass(frozen=True)
class Statistics:
    """The statistics of one matrix that were collected.

    values: by kind, without the Gram matrix and its tokens, which the Hessian has. hessian: of the
    input, one object for all matrices that have the same input.
    """

    values: MatrixStatistics = field(default_factory=dict)
    hessian: Hessian | None = None

    def terminals(self, names: Iterable[str], weight: Tensor) -> dict[str, Tensor]:
        """The values of the terminals of these names, fp32.

        weight: (out, in) fp32, signed. A terminal whose statistic was not collected is left out.
        """
        wanted = set(names)
        values = {name: value for name, value in self.values.items() if name in wanted}
        if "W" in wanted:
            values["W"] = weight.abs()
        if "S" in wanted:
            values["S"] = weight
        if "D" in wanted and self.hessian is not None:
            values["D"] = self.hessian.diagonal
        return values

    def silent(self) -> list[str]:
        """The names of the statistics that are zero throughout."""
        gram = {} if self.hessian is None else {"XᵀX": self.hessian.gram}
        return [name for name, value in {**self.values, **gram}.items() if not value.any()]


def block_statistics(collected: dict[str, MatrixStatistics]) -> dict[str, Statistics]:
    """By matrix name, what was collected of the inputs of one block; `collected` is emptied.

    Matrices that share one `MatrixStatistics` share one Hessian, which is shrunk where "tokens"
    were collected.
    """
    shared: dict[int, Statistics] = {}
    statistics = {}
    for name, values in collected.items():
        if id(values) not in shared:
            rest = {kind: value for kind, value in values.items() if kind not in _OF_HESSIAN}
            shared[id(values)] = Statistics(rest, _hessian(values, name))
        statistics[name] = shared[id(values)]
    collected.clear()
    return statistics


def _hessian(values: MatrixStatistics, name: str) -> Hessian | None:
    gram = values.get("gram")
    if gram is None:
        return None
    tokens = values.get("tokens")
    shrinkage = 0.0 if tokens is None else shrinkage_for(len(gram), tokens.item())
    return Hessian(gram, name=name, shrinkage=shrinkage)


class DenseStatistics:
    """Reads the dense model's statistics of one matrix after the other.

    The last Hessian is kept, for the next matrix with its input.
    """

    def __init__(self, store: StatisticsStore) -> None:
        self.store = store
        self._last: tuple[tuple[str, frozenset[Kind]], Hessian | None] | None = None

    def read(self, matrix: Matrix, kinds: Collection[Kind]) -> Statistics:
        """The statistics `kinds` of one matrix, on its device. Raises PrunerZeroError."""
        ordered = [*select(ForwardStatistic, kinds), *select(GradientStatistic, kinds)]
        values = {kind: self._read(kind, matrix) for kind in ordered if kind not in _OF_HESSIAN}
        return Statistics(values, self._hessian(matrix, kinds) if "gram" in kinds else None)

    def _read(self, kind: Kind, matrix: Matrix) -> Tensor:
        name, device = matrix.name, matrix.weight.device
        return self.store.read(kind, matrix.block, [name], device=device)[name]

    def _hessian(self, matrix: Matrix, kinds: Collection[Kind]) -> Hessian | None:
        read = _OF_HESSIAN & set(kinds)
        key = self.store.owners("gram", matrix.block)[matrix.name], read
        if self._last is None or self._last[0] != key:
            # Freed before the next one, which is as large, is read.
            self._last = None
            values = {kind: self._read(kind, matrix) for kind in read}
            self._last = key, _hessian(values, matrix.name)
        return self._last[1]


# Scores of 268 million weights: the scores of a small model are computed once; those of a large
# model, which take more memory than its weights, are computed again when needed.
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class Mask:
    """The mask of one matrix.

    kept: bool (out, in), True = kept; None where the sweep chooses it. reached: whether calibration
    reached the matrix.
    """

    kept: Tensor | None
    reached: bool = True


def masks_of(
    matrices: Sequence[Matrix],
    chosen: "Scored",
    read: Callable[[Matrix], Statistics],
    *,
    sweep: bool = False,
    load: Callable[[int], AbstractContextManager[object]] = nullcontext,
    hold: int | None = None,
) -> Mapping[str, Mask]:
    """The masks of one group of matrices, whose scores the pattern needs at once.

    read: the statistics of one matrix that the metric needs. sweep: whether a step chooses the
    masks of matrices that calibration reached. load: a context in which the weights of a block are
    in memory; the default is for blocks that are. hold: how many bytes of scores are kept,
    `HELD_BYTES` where None; other scores, and masks, are computed whenever they are asked for.
    Raises PrunerZeroError naming a matrix that the metric cannot score.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    pattern = chosen.pattern
    swept: list[str] = []
    if sweep and pattern.reach != "model":
        # The sweep computes the score itself, one matrix at a time.
        swept = [name for name, matrix in by_name.items() if not read(matrix).silent()]
    scored = [name for name in by_name if name not in swept]
    scores = scores_of([by_name[name] for name in scored], chosen.metric, read, load, hold)

    def magnitude(name: str) -> Tensor:
        with load(by_name[name].block):
            return by_name[name].weight.float().abs()

    masks = choose_masks(pattern, scored, scores, magnitude) if scored else {}

    def mask(name: str) -> Mask:
        return Mask(None) if name in swept else Mask(masks[name], name in scores)

    return Lazy(by_name, mask)


def dense_masks(
    language_model: LanguageModel,
    entry: "Scored",
    matrices: Sequence[Matrix],
    statistics: DenseStatistics,
) -> Mapping[str, Mask]:
    """The masks of all matrices by statistics of the dense model, computed when they are asked for.

    A threshold of the whole model is computed at once, from weights that must be dense then; later
    those of the block whose masks are asked for must be. Raises PrunerZeroError where the metric
    cannot score a matrix.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    parts = groups(entry.pattern, {matrix.name: matrix.block for matrix in matrices})
    group_of = {name: tuple(names) for names in parts for name in names}
    kinds = collected_for(entry.metric.needs)

    # One group at a time, because a group may hold scores until its masks are asked for.
    @lru_cache(maxsize=1)
    def of_group(names: tuple[str, ...]) -> Mapping[str, Mask]:
        return masks_of(
            [by_name[name] for name in names],
            entry,
            lambda matrix: statistics.read(matrix, kinds),
            load=language_model.block,
            hold=0 if language_model.on_disk else None,
        )

    if entry.pattern.reach == "model":
        return of_group(tuple(by_name))
    return Lazy(group_of, lambda name: of_group(group_of[name])[name])


def masks_of_cut(matrices: Sequence[Matrix], cut: "Cut") -> Mapping[str, Mask]:
    """The masks of matrices that a decided `cut` removes whole or not at all."""
    by_name = {matrix.name: matrix for matrix in matrices}

    def mask(name: str) -> Mask:
        weight = by_name[name].weight
        return Mask(torch.full_like(weight, not cut.goes(name), dtype=torch.bool))

    return Lazy(by_name, mask)


def scores_of(
    matrices: Sequence[Matrix],
    metric: Metric,
    read: Callable[[Matrix], Statistics],
    load: Callable[[int], AbstractContextManager[object]] = nullcontext,
    hold: int | None = None,
) -> Lazy[Tensor]:
    """The scores of `matrices` without those that calibration never reached; as `masks_of`."""
    by_name = {matrix.name: matrix for matrix in matrices}

    def compute(name: str) -> Tensor | None:
        if name not in by_name:
            return None
        with load(by_name[name].block):
            return score_matrix(by_name[name], read(by_name[name]), metric)

    def names() -> Iterator[str]:
        blocks = sorted({matrix.block for matrix in by_name.values()})
        for index in track(blocks, "scores", len(blocks)):
            with load(index):
                yield from (name for name, matrix in by_name.items() if matrix.block == index)

    return Lazy(names, compute, HELD_BYTES if hold is None else hold)


def choose_masks(
    pattern: Pattern,
    names: Collection[str],
    scores: Mapping[str, Tensor],
    magnitudes: Callable[[str], Tensor],
) -> Mapping[str, Tensor]:
    """The masks (out, in) of the matrices `names`, all of one group of the pattern's reach.

    A matrix without `scores` was never reached by calibration: it is scored by its `magnitudes`,
    and does not compete with matrices that have scores. Raises what `Pattern.choose` raises.
    """
    masks = pattern.choose(scores)
    unreached = dict.fromkeys(name for name in names if name not in scores)
    by_magnitude = pattern.within_matrices().choose(Lazy(unreached, magnitudes))

    def mask(name: str) -> Tensor:
        return by_magnitude[name] if name in unreached else masks[name]

    return Lazy(names, mask)


def reached_score(expression: Expression, terminals: Mapping[str, Tensor]) -> Tensor | None:
    """The scores (out, in) of one matrix, fp32; None where calibration never reached the matrix.

    Such a matrix, as an expert that no token chose, has an all-zero statistic of its input, or an
    all-zero statistic of its gradients from which the expression gives no scores. Raises ScoreError
    where the metric itself fails.
    """
    silent = [
        name
        for name in expression.terminals
        if TERMINALS[name].collected is not None and not terminals[name].any()
    ]
    if select(InputStatistic, collected_for(silent)):
        return None
    try:
        return score(expression, terminals)
    except ScoreError:
        if silent:
            return None
        raise


def score_matrix(matrix: Matrix, statistics: Statistics, metric: Metric) -> Tensor | None:
    """The scores of `matrix` by `metric`, as `reached_score` gives them.

    Raises PrunerZeroError naming the matrix where the metric itself fails.
    """
    if statistics.hessian is not None and not statistics.hessian.gram.any():
        return None
    try:
        terminals = statistics.terminals({"W", *metric.needs}, matrix.weight.float())
        return reached_score(metric.expression, terminals)
    except ScoreError as error:
        raise PrunerZeroError(
            f"{metric} cannot score {matrix.name}: {error}: choose another metric, or exclude "
            "the matrix"
        ) from error
