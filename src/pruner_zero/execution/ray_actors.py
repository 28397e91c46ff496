"""Actors of a Ray cluster as workers; each may hold a GPU. The cluster is left as it was."""

import math
import os
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError, one_line
from pruner_zero.execution.executor import UNLIMITED, AnyWork, Work, Workers, usable_cores
from pruner_zero.execution.shared_memory import Packed, pack, unpack
from pruner_zero.execution.workers import Worker, WorkerExecutor

T = TypeVar("T")
R = TypeVar("R")

# Seconds a cluster has to answer.
_CONNECT_TIMEOUT = 10.0

# The names in Ray's options, and in the resources of its nodes.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


class RayExecutor(WorkerExecutor[T, R]):
    """Actors on a Ray cluster. The work is put into Ray's object store once.

    The actors of a machine share its tensors there; an actor with a GPU copies them to it.
    workers: by default as many actors as the cluster holds. `ray_address`: that of a cluster, else
    $RAY_ADDRESS, else an instance on this machine; a Ray that is initialised already is used.
    `ray_resources` of each actor: `num_cpus` (by default `threads`), `num_gpus`, and any name of
    the cluster's own. Raises PrunerZeroError where Ray is not installed, no cluster answers, or it
    cannot hold an actor.
    """

    def __init__(self, work: Work[T, R], workers: Workers) -> None:
        needed = {"num_cpus": float(workers.threads), **workers.ray_resources}
        self.ray, self.threads = _import_ray(), workers.threads
        # The errors that the calls of an actor raise when the actor has died.
        deaths = ["RayActor", "WorkerCrashed", "NodeDied", "OutOfMemory", "ObjectLost"]
        self.died = tuple(getattr(self.ray.exceptions, f"{death}Error") for death in deaths)
        self.started = not self.ray.is_initialized()
        if self.started:
            _connect(self.ray, workers.ray_address, needed["num_cpus"] * (workers.count or 1))
        try:
            self.actor = _remote(self.ray, needed)
            fit = _actors_that_fit(self.ray, needed)
            self.packed = self.ray.put(pack(work))
            super().__init__(work, workers.count or fit, workers.time_limit)
        except BaseException:
            self._shut_down()
            raise

    def worker(self) -> Worker:
        """A new actor."""
        return _Handle(self.ray, self.actor.remote(self.packed, self.threads))

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
            "--executor ray needs Ray: pip install ray, or choose --executor processes"
        ) from error
    return ray


def _connect(ray: Any, address: str | None, cpus: float) -> None:
    address = _reach(address)
    given: dict[str, Any] = {}
    if address == "local":
        # Ray only counts CPUs: as many as the actors need, at least those of the machine.
        given = {"num_cpus": max(math.ceil(cpus), usable_cores()), "include_dashboard": False}
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


def _remote(ray: Any, needed: Mapping[str, float]) -> Any:
    """Actors with the resources that each needs. Raises PrunerZeroError."""
    named = {name: amount for name, amount in needed.items() if name in _NAMES}
    custom = {name: amount for name, amount in needed.items() if name not in _NAMES}
    try:
        return ray.remote(_Actor).options(**named, resources=custom)
    except ValueError as error:
        raise PrunerZeroError(f"--ray-resources: {one_line(error)}") from error


def _actors_that_fit(ray: Any, needed: Mapping[str, float]) -> int:
    """How many actors the cluster holds. Raises PrunerZeroError where it holds none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shares = [
        [node.get(_NAMES.get(name, name), 0) // amount for name, amount in needed.items() if amount]
        for node in nodes
    ]
    fit = int(sum(min(amounts, default=1) for amounts in shares))
    if not fit:
        asked = ", ".join(f"{name}={amount:g}" for name, amount in needed.items())
        raise PrunerZeroError(
            f"no machine of the Ray cluster has what an actor needs ({asked}): "
            "change --ray-resources"
        )
    return fit
