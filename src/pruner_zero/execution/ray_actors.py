"""Actors of a Ray cluster as workers; each may hold a GPU."""

from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from pruner_zero.devices import CPU
from pruner_zero.execution.executor import AnyWork, Work, Workers
from pruner_zero.execution.ray_cluster import RayCluster
from pruner_zero.execution.shared_memory import Packed, pack, unpack
from pruner_zero.execution.time_limit import UNLIMITED
from pruner_zero.execution.workers import Worker, WorkerExecutor

T = TypeVar("T")
R = TypeVar("R")


class RayExecutor(WorkerExecutor[T, R]):
    """Actors on a Ray cluster. The work is put into Ray's object store once.

    The actors of a machine share its tensors there; an actor that holds a GPU (`num_gpus` in the
    resources) copies all of them to it. workers: how many actors, by default as many as the
    cluster holds; `ray_address` as `RayCluster` takes it; `ray_resources` of each actor:
    `num_cpus` (by default `threads`), `num_gpus`, and any name of the cluster's own. Raises
    PrunerZeroError where Ray is not installed, no cluster answers, or it cannot hold an actor.
    """

    def __init__(self, work: Work[T, R], workers: Workers) -> None:
        needed = {"num_cpus": float(workers.threads), **workers.ray_resources}
        self.cluster = RayCluster(workers.ray_address, needed, workers.count or 1)
        self.died = self.cluster.died
        self.threads = workers.threads
        try:
            self.actor = self.cluster.remote(_Actor)
            fit = self.cluster.actors_that_fit()
            self.packed = self.cluster.ray.put(pack(work))
            super().__init__(work, workers.count or fit, workers.time_limit)
        except BaseException:
            self.cluster.close()
            raise

    def worker(self) -> Worker:
        """A new actor."""
        return _Handle(self.cluster.ray, self.actor.remote(self.packed, self.threads))

    def ran_out_of_memory(self, worker: Worker, error: BaseException) -> bool:
        """Whether Ray itself killed the actor because its machine was short of memory."""
        return isinstance(error, self.cluster.ray.exceptions.OutOfMemoryError)

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        super().close()
        self.packed = None
        self.cluster.close()


class _Handle:
    """An actor as a worker."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray = ray
        self.actor = actor

    def start(self) -> Future[Any]:
        started: Future[Any] = self.actor.ready.remote().future()
        return started

    def run(self, task: Any) -> Future[Any]:
        result: Future[Any] = Future()

        def hand_on(answer: Future[Any]) -> None:
            error = answer.exception()
            # Ray wraps the error of the task and adds the traceback to its text.
            if isinstance(error, self.ray.exceptions.RayTaskError):
                error = error.cause
            if error is None:
                result.set_result(answer.result())
            else:
                result.set_exception(error)

        self.actor.run.remote(task).future().add_done_callback(hand_on)
        return result

    def kill(self) -> None:
        self.ray.kill(self.actor)


class _Actor:
    """Lives in a process of Ray."""

    def __init__(self, packed: Packed, threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        device = torch.device("cuda") if ray.get_gpu_ids() else CPU
        self.work: AnyWork = unpack(packed, device)
        self.work.set_up()

    def ready(self) -> None:
        """Done once the actor has started."""

    def run(self, task: Any) -> Any:
        return self.work.run(task, UNLIMITED)
