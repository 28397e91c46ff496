"""Matrices pruned by tasks of a Ray cluster, each on its own."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import Matrix
from pruner_zero.packing import Packed, pack, unpack
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.scoring import Job, Pruner
from pruner_zero.ray_cluster import RayCluster


@contextmanager
def ray_pruner(
    workers: int,
    address: str | None = None,
    resources: Mapping[str, float] | None = None,
    *,
    room: int = 0,
) -> Iterator[Pruner]:
    """Prunes up to `workers` matrices at a time on a Ray cluster, joined for as long as it lasts.

    The weights are those that `prune_here` leaves with as many threads as each task has,
    whatever the number of workers. address: as `RayCluster` takes it. resources: of each task,
    `num_cpus` (1 where not given, as many threads), `num_gpus`, and any the cluster names itself.
    room: how many workers an instance on this machine has to hold, where others use it too.
    Raises PrunerZeroError where Ray is not installed, no cluster answers, or it cannot hold a task.
    """
    needed = {"num_cpus": 1.0, **(resources or {})}
    cluster = RayCluster(
        address,
        needed,
        max(workers, room),
        user="--pruning-workers",
        instead="leave them out",
    )
    try:
        pruner = RayPruner(cluster, workers)
        cluster.actors_that_fit()
        yield pruner
    finally:
        cluster.close()


class RayPruner:
    """A task for each matrix; Ray runs one again, once, whose worker or machine was lost."""

    def __init__(self, cluster: RayCluster, workers: int) -> None:
        self.cluster = cluster
        self.ray = cluster.ray
        self.workers = workers
        self.task = cluster.remote(_prune, max_retries=1)
        self.threads = max(1, int(cluster.needed["num_cpus"]))

    def __call__(self, jobs: Iterable[Job]) -> Iterator[MatrixRecord]:
        """Prune in place, whichever matrix is done first; the records in the order of the jobs.

        Raises PrunerZeroError where a job does, and where a task's worker dies twice.
        """
        source = iter(jobs)
        order: deque[Any] = deque()
        at_work: dict[Any, Matrix] = {}
        records: dict[Any, MatrixRecord] = {}
        try:
            while True:
                for job in islice(source, self.workers - len(at_work)):
                    answer = self.task.remote(pack(_alone(job)), self.threads)
                    order.append(answer)
                    at_work[answer] = job.matrix
                if not order:
                    return
                if order[0] in records:
                    yield records.pop(order.popleft())
                    continue
                (done,), _ = self.ray.wait(list(at_work))
                records[done] = self._take(done, at_work.pop(done))
        finally:
            for answer in at_work:
                self.ray.cancel(answer, force=True)

    def _take(self, answer: Any, matrix: Matrix) -> MatrixRecord:
        """Write what a task made of `matrix` into the model."""
        weight: Tensor
        record: MatrixRecord
        try:
            weight, record = unpack(self.ray.get(answer))
        except self.cluster.died as error:
            raise PrunerZeroError(
                f"a pruning worker died twice at {matrix.name}: give each more memory, or choose "
                f"fewer --pruning-workers ({' '.join(str(error).split()):.200})"
            ) from error
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PrunerZeroError):
                raise error.cause from None
            raise
        matrix.weight.copy_(weight)
        return record


def _alone(job: Job) -> Job:
    """`job` with the weights of its matrix apart from the model's, laid out as they are there."""
    matrix = job.matrix
    weight = nn.Parameter(matrix.weight.clone(), requires_grad=False)
    return replace(job, matrix=Matrix(matrix.name, matrix.block, weight, matrix.name))


def _prune(packed: Packed, threads: int) -> Packed:
    """Runs in a process of Ray's."""
    torch.set_num_threads(threads)
    # What is unpacked is only to be read.
    job = _alone(unpack(packed))
    with torch.no_grad():
        record = job.run()
    return pack((job.matrix.weight, record))
