"""Masks of matrices: the method's metric scores them, and its pattern chooses the masks."""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from pruner_zero.models import Matrix
from pruner_zero.progress import SILENT, Progress
from pruner_zero.pruning.lazy_scores import LazyScores
from pruner_zero.pruning.method import Method
from pruner_zero.pruning.scoring import score_matrix
from pruner_zero.pruning.statistics import Statistics
from pruner_zero.sparsity import choose_masks


@dataclass(frozen=True)
class Choice:
    """Masks by matrix name, and the names of the matrices that calibration reached.

    masks: bool (out, in), True = kept. A matrix without a mask was reached too, and gets its mask
    from the sweep.
    """

    masks: Mapping[str, Tensor]
    reached: Container[str] = ()

    def of(self, names: Collection[str]) -> "Choice":
        """The choice for the matrices `names`, with masks that are computed now."""
        masks = {name: self.masks[name] for name in names if name in self.masks}
        return Choice(masks, {name for name in names if name not in masks or name in self.reached})


def choose(
    matrices: Sequence[Matrix],
    method: Method,
    read: Callable[[Matrix], Statistics],
    *,
    load: Callable[[int], AbstractContextManager[object]] = nullcontext,
    hold: int | None = None,
    progress: Progress = SILENT,
) -> Choice:
    """The choice for one group of matrices, whose scores the method's pattern needs at once.

    read: the statistics of one matrix that the metric needs. load: a context in which the weights
    of a block are in memory; the default is for blocks that are. Masks are computed when they are
    asked for, and so are scores that `LazyScores` does not hold; hold: as there. Raises
    PrunerZeroError naming a matrix that the metric cannot score.
    """
    by_name = {matrix.name: matrix for matrix in matrices}
    if method.chooser and method.pattern.reach != "model":
        # The sweep computes the score itself, one matrix at a time.
        by_name = {name: matrix for name, matrix in by_name.items() if read(matrix).silent()}
    if not by_name:
        return Choice({})

    def magnitude(name: str) -> Tensor:
        with load(by_name[name].block):
            return by_name[name].weight.float().abs()

    def score(name: str) -> Tensor | None:
        if name not in by_name:
            return None
        with load(by_name[name].block):
            return score_matrix(by_name[name], read(by_name[name]), method.metric)

    def names() -> Iterator[str]:
        blocks = sorted({matrix.block for matrix in by_name.values()})
        for index in progress.track(blocks, "scores", len(blocks)):
            with load(index):
                yield from (name for name, matrix in by_name.items() if matrix.block == index)

    scores = LazyScores(names, score, hold)
    return Choice(choose_masks(method.pattern, by_name, scores, magnitude), scores)
