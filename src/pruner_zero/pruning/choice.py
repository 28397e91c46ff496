"""Masks of matrices: the method's metric scores them, and its pattern chooses the masks."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.models import LanguageModel, Matrix, OffloadedModel
from pruner_zero.progress import Progress
from pruner_zero.pruning.lazy_scores import LazyScores
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.scoring import score_matrix
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import choose_masks


@dataclass(frozen=True)
class Choice:
    """Masks by matrix name, and the names of the matrices that calibration reached.

    masks: bool (out, in), True = kept. A reached matrix without a mask gets its mask from the
    sweep.
    """

    masks: Mapping[str, Tensor]
    reached: Container[str]

    def of(self, names: Iterable[str]) -> "Choice":
        """The choice for the matrices `names`, with masks that are computed now."""
        masks = {name: self.masks[name] for name in names}
        return Choice(masks, {name for name in masks if name in self.reached})


def choose(
    matrices: Sequence[Matrix], statistics: Mapping[str, Statistics], method: Method
) -> Choice:
    """The choice for one group of matrices, whose scores the method's pattern needs at once.

    statistics: of each matrix by name. Raises PrunerZeroError naming a matrix that the metric
    cannot score.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    swept: set[str] = set()
    if method.chooser:
        # The sweep computes the score itself, one matrix at a time.
        swept = {name for name in by_name if not statistics[name].silent()}
        if len(swept) == len(by_name):
            return Choice({}, swept)
        by_name = {name: matrix for name, matrix in by_name.items() if name not in swept}

    def score(name: str) -> Tensor | None:
        if name not in by_name:
            return None
        return score_matrix(by_name[name], statistics[name], method.metric)

    scores = LazyScores(by_name.copy, score)
    masks = choose_masks(
        method.pattern, by_name, scores, lambda name: by_name[name].weight.float().abs()
    )
    return Choice({name: masks[name] for name in by_name}, swept.union(scores))


def choose_for_model(
    language_model: LanguageModel,
    matrices: Sequence[Matrix],
    method: Method,
    read: Callable[[Matrix], Statistics],
    progress: Progress,
) -> Choice:
    """The choice for all matrices, where the method's pattern needs the scores of the whole model.

    read: the statistics of one matrix that the metric needs. Masks are computed when they are asked
    for, and so are scores that `LazyScores` does not hold; for an offloaded model it holds no
    scores. Raises PrunerZeroError naming a matrix that the metric cannot score.
    """
    by_name = {matrix.name: matrix for matrix in matrices}

    def magnitude(name: str) -> Tensor:
        with language_model.block(by_name[name].block):
            return by_name[name].weight.float().abs()

    def score(name: str) -> Tensor | None:
        if name not in by_name:
            return None
        with language_model.block(by_name[name].block):
            return score_matrix(by_name[name], read(by_name[name]), method.metric)

    def names() -> Iterator[str]:
        blocks = sorted({matrix.block for matrix in matrices})
        for index in progress.track(blocks, "scores", len(blocks)):
            with language_model.block(index):
                yield from (name for name, matrix in by_name.items() if matrix.block == index)

    hold = 0 if isinstance(language_model, OffloadedModel) else None
    scores = LazyScores(names, score, hold)
    return Choice(choose_masks(method.pattern, by_name, scores, magnitude), scores)
