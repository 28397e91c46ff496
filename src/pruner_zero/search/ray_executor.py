"""Actors of a Ray cluster that judge candidates."""

import math
import os
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.search.evaluator import Evaluator, Outcome, Task
from pruner_zero.search.executor import Worker, WorkerExecutor, own_parameters
from pruner_zero.search.packing import Packed, pack, unpack

# Seconds a cluster has to answer.
CONNECT_TIMEOUT = 10.0


class RayExecutor(WorkerExecutor):
    """Actors on a Ray cluster; the evaluator is put into the object store once.

    The actors of a machine share its tensors there, read-only; each has its own copy of the
    weights it masks. workers: actors, as many as the cluster holds where None. address: of a
    cluster, else $RAY_ADDRESS, else an instance on this machine; a Ray that is initialised
    already is used and left as it is. resources: of each actor, `num_cpus` (`threads` where
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
        self.ray = _import_ray()
        self.threads = threads
        needed = {"num_cpus": float(threads), **(resources or {})}
        self.started = not self.ray.is_initialized()
        if self.started:
            self._connect(address, needed["num_cpus"] * (workers or 1))
        errors = self.ray.exceptions
        self.died = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        )
        try:
            self.actor = self._actor_class(needed)
            fit = self._actors_that_fit(needed)
            self.evaluator = self.ray.put(pack(evaluator))
            super().__init__(workers or fit, time_limit)
        except BaseException:
            self._disconnect()
            raise

    def worker(self) -> Worker:
        """A new actor."""
        return _Handle(self.ray, self.actor.remote(self.evaluator, self.threads))

    def close(self) -> None:
        """Stop the actors, and Ray where it was started here."""
        super().close()
        self.evaluator = None
        self._disconnect()

    def _connect(self, address: str | None, cpus: float) -> None:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        given: dict[str, Any] = {}
        if address == "local":
            # CPUs are a count to share out: as many as are asked for, at least those there are.
            given = {"num_cpus": max(math.ceil(cpus), os.cpu_count() or 1)}
            given["include_dashboard"] = False
        try:
            _knock(address)
            self.ray.init(address, log_to_driver=False, logging_level="error", **given)
        except (OSError, RuntimeError, ValueError) as error:
            raise PrunerZeroError(
                f"no Ray cluster can be used at {address}: start one (ray start --head), or give "
                f"another --ray-address ({_one_line(error)})"
            ) from error

    def _disconnect(self) -> None:
        if self.started:
            self.ray.shutdown()
        self.started = False

    def _actors_that_fit(self, needed: Mapping[str, float]) -> int:
        """How many actors the nodes hold as they are. Raises PrunerZeroError where none."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        shares = [
            [
                node.get(_NAMES.get(name, name), 0) // amount
                for name, amount in needed.items()
                if amount
            ]
            for node in nodes
        ]
        fit = int(sum(min(own, default=1) for own in shares))
        if not fit:
            asked = ", ".join(f"{name}={amount:g}" for name, amount in needed.items())
            raise PrunerZeroError(
                f"no machine of the Ray cluster has what an actor needs ({asked}): "
                "change --ray-resources"
            )
        return fit

    def _actor_class(self, needed: Mapping[str, float]) -> Any:
        own = {name: amount for name, amount in needed.items() if name in _NAMES}
        others = {name: amount for name, amount in needed.items() if name not in _NAMES}
        try:
            return self.ray.remote(_Actor).options(**own, resources=others)
        except ValueError as error:
            raise PrunerZeroError(f"--ray-resources: {_one_line(error)}") from error


# What Ray calls in its options and in its nodes' resources.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


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


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise PrunerZeroError(
            "the ray executor needs Ray: pip install 'pruner-zero[ray]', or choose "
            "--executor processes"
        ) from error
    return ray
