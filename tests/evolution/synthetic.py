"""A fitness without a model: how well a score ranks the weights of one random matrix."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pruner_zero.evolution.ask import BatchAlgorithm
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.scoring import ScoreError, score

Fitness = Callable[[Candidate], Evaluation]

EXACT = 1e-5


def _tensors() -> dict[str, Tensor]:
    """W, G, X of a layer whose rows and columns differ in scale, as real ones do."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows, columns = (0.7 * normal(32, 1)).exp(), (0.7 * normal(1, 64)).exp()
    return {
        "W": normal(32, 64).abs() * rows * columns,
        "G": (normal(32, 64) + 0.5 * normal(32, 1)).exp(),
        "X": (0.8 * normal(1, 64)).exp(),
    }


TENSORS = _tensors()


def by_rank(target: str) -> Fitness:
    """1 − Spearman's correlation with the hidden target, in rows or over the matrix."""
    hidden = score(parse(target), TENSORS)

    def correlation(values: Tensor, scope: str) -> float:
        wanted = [hidden, values] if scope == "row" else [hidden.view(1, -1), values.view(1, -1)]
        ranks = [tensor.argsort(dim=1, stable=True).argsort(dim=1).double() for tensor in wanted]
        x, y = (rank - rank.mean() for rank in ranks)
        return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())

    return _guarded(lambda values, scope: 1 - correlation(values, scope))


def by_loss(target: str) -> Fitness:
    """The share of the hidden target's sum that pruning half of each group removes."""
    hidden = score(parse(target), TENSORS)

    def loss(values: Tensor, scope: str) -> float:
        groups = (values, hidden) if scope == "row" else (values.view(1, -1), hidden.view(1, -1))
        lowest = groups[0].argsort(dim=1, stable=True)[:, : groups[0].shape[1] // 2]
        return float(groups[1].gather(1, lowest).sum() / hidden.sum())

    return _guarded(loss)


def _guarded(value: Callable[[Tensor, str], float]) -> Fitness:
    def fitness(candidate: Candidate) -> Evaluation:
        try:
            return Evaluation(1, value(score(candidate.expression, TENSORS), candidate.scope))
        except ScoreError as error:
            return Evaluation(0, float("inf"), reason=str(error))

    return fitness


def run(
    algorithm: BatchAlgorithm, fitness: Fitness, evaluations: int, goal: float = -1
) -> list[tuple[Candidate, Evaluation]]:
    """Candidates and their evaluations, by batches until `evaluations` or `goal` is reached."""
    evaluated: list[tuple[Candidate, Evaluation]] = []
    while len(evaluated) < evaluations:
        batch = [(candidate, fitness(candidate)) for candidate in algorithm.ask()]
        if not batch:
            break
        algorithm.tell(batch)
        evaluated += batch
        if min(evaluation.value for _, evaluation in batch) <= goal:
            break
    return evaluated


def best(evaluated: Sequence[tuple[Candidate, Evaluation]]) -> tuple[Candidate, Evaluation]:
    return min(evaluated, key=lambda pair: pair[1].key)
