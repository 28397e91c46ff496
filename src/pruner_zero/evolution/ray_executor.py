"""Actors of a Ray cluster that judge candidates."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import torch

from pruner_zero.evolution.evaluator import Evaluator, Outcome, Task
from pruner_zero.evolution.executor import Worker, WorkerExecutor, own_parameters
from pruner_zero.packing import Packed, pack, unpack
from pruner_zero.ray_cluster import RayCluster


class RayExecutor(WorkerExecutor):
    """Actors on a Ray cluster; the evaluator is put into the object store once.

    The actors of a machine share its tensors there, read-only; each has its own copy of the
    weights it masks. workers: actors, as many as the cluster holds where None. address: as
    `RayCluster` takes it. resources: of each actor, `num_cpus` (`threads` where
    not given), `num_gpus`, and any the cluster names itself. Raises PrunerZeroError where
    Ray is not installed, no cluster answers, or it cannot hold an actor.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        workers: int | None = None,
        threads: int = 1,
        time_limit: float = 600.0,
        *,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        needed = {"num_cpus": float(threads), **(resources or {})}
        self.cluster = RayCluster(
            address,
            needed,
            workers or 1,
            user="the ray executor",
            instead="choose --executor processes",
        )
        self.died = self.cluster.died
        self.threads = threads
        try:
            self.actor = self.cluster.remote(_Actor)
            fit = self.cluster.actors_that_fit()
            self.evaluator = self.cluster.ray.put(pack(evaluator))
            super().__init__(workers or fit, time_limit)
        except BaseException:
            self.cluster.close()
            raise

    def worker(self) -> Worker:
        """A new actor."""
        return _Handle(self.cluster.ray, self.actor.remote(self.evaluator, self.threads))

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        super().close()
        self.evaluator = None
        self.cluster.close()


class _Handle:
    """An actor as a worker."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray = ray
        self.actor = actor

    def start(self) -> Future[Any]:
        started: Future[Any] = self.actor.ready.remote().future()
        return started

    def judge(self, task: Task) -> Future[Outcome]:
        outcome: Future[Outcome] = self.actor.judge.remote(task).future()
        return outcome

    def kill(self) -> None:
        self.ray.kill(self.actor)


class _Actor:
    """Lives in a process of Ray's."""

    def __init__(self, packed: Packed, threads: int) -> None:
        torch.set_num_threads(threads)
        self.evaluator = own_parameters(unpack(packed))

    def ready(self) -> None:
        """Done once the actor has started."""

    def judge(self, task: Task) -> Outcome:
        return self.evaluator.run(task)
