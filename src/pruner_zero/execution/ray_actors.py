"""Actors of a Ray cluster as workers. The cluster is left as it was."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.execution.executor import TIME_LIMIT, AnyWork, Work, usable_cores
from pruner_zero.execution.shared_memory import Packed, pack, unpack
from pruner_zero.execution.workers import Worker, WorkerExecutor

T = TypeVar("T")
R = TypeVar("R")

# Seconds a cluster has to answer.
_CONNECT_TIMEOUT = 10.0


class RayExecutor(WorkerExecutor[T, R]):
    """Actors on a Ray cluster, a CPU each. The work is put into Ray's object store once.

    The actors of a machine share its tensors there. count: None for as many as the cluster holds.
    address: that of a cluster, else $RAY_ADDRESS; "local" starts an instance on this machine. A Ray
    that is initialised already is used. Raises PrunerZeroError where Ray is not installed or no
    cluster answers.
    """

    def __init__(
        self,
        work: Work[T, R],
        count: int | None = None,
        address: str | None = None,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self.ray = _import_ray()
        # The errors that the calls of an actor raise when the actor has died.
        deaths = ["RayActor", "WorkerCrashed", "NodeDied", "OutOfMemory", "ObjectLost"]
        self.died = tuple(getattr(self.ray.exceptions, f"{death}Error") for death in deaths)
        self.started = not self.ray.is_initialized()
        if self.started:
            _connect(self.ray, address, count or 1)
        try:
            self.actor = self.ray.remote(_Actor).options(num_cpus=1)
            self.packed = self.ray.put(pack(work))
            cpus = int(self.ray.cluster_resources().get("CPU", 0))
            super().__init__(work, count or max(1, cpus), time_limit)
        except BaseException:
            self._shut_down()
            raise

    def worker(self) -> Worker:
        """A new actor."""
        return _Handle(self.ray, self.actor.remote(self.packed))

    def ran_out_of_memory(self, worker: Worker, error: BaseException) -> bool:
        """Whether Ray itself killed the actor because its machine was short of memory."""
        return isinstance(error, self.ray.exceptions.OutOfMemoryError)

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        super().close()
        self.packed = None
        self._shut_down()

    def _shut_down(self) -> None:
        if self.started:
            self.ray.shutdown()
        self.started = False


class _Handle:
    """An actor as a worker."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray = ray
        self.actor = actor

    def start(self) -> Future[Any]:
        started: Future[Any] = self.actor.ready.remote().future()
        return started

    def run(self, task: Any) -> Future[Any]:
        result: Future[Any] = self.actor.run.remote(task).future()
        return result

    def kill(self) -> None:
        self.ray.kill(self.actor)


class _Actor:
    """Lives in a process of Ray."""

    def __init__(self, packed: Packed) -> None:
        torch.set_num_threads(1)
        self.work: AnyWork = unpack(packed)
        self.work.set_up()

    def ready(self) -> None:
        """Done once the actor has started."""

    def run(self, task: Any) -> Any:
        return self.work.run(task)


def check_cluster(address: str | None) -> None:
    """Raise PrunerZeroError where Ray is not installed or nothing listens at `address`.

    address: as `RayExecutor` takes it. A Ray that is initialised already is not checked.
    """
    if not _import_ray().is_initialized():
        _reach(address)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise PrunerZeroError(
            "--ray-address needs Ray: pip install ray, or leave it out and unset RAY_ADDRESS"
        ) from error
    return ray


def _connect(ray: Any, address: str | None, cpus: int) -> None:
    address = _reach(address)
    given: dict[str, Any] = {}
    if address == "local":
        # Ray only counts CPUs: as many as the actors need, at least those of the machine.
        given = {"num_cpus": max(cpus, usable_cores()), "include_dashboard": False}
    with _usable(address):
        ray.init(address, log_to_driver=False, logging_level="error", **given)


def _reach(address: str | None) -> str:
    """The address that is meant; refused where nothing listens: Ray would try for minutes."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    host, _, port = address.rpartition("/")[2].rpartition(":")
    with _usable(address):
        if host:
            where = host.strip("[]"), int(port)
            socket.create_connection(where, timeout=_CONNECT_TIMEOUT).close()
    return address


@contextmanager
def _usable(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise PrunerZeroError(
            f"no Ray cluster can be used at {address}: start one (ray start --head), or give "
            f"another --ray-address ({one_line(error)})"
        ) from error
