"""A Ray cluster: joined or started, asked for its resources, left as it was found."""

import math
import os
import socket
from collections.abc import Mapping
from typing import Any

from pruner_zero.errors import PrunerZeroError, one_line

# Seconds a cluster has to answer.
CONNECT_TIMEOUT = 10.0


class RayCluster:
    """A connection to Ray for actors that all need the same resources.

    address: the address of a cluster, else $RAY_ADDRESS, else an instance on this machine; a Ray
    that is initialised already is used and left as it is. needed: the resources of each actor:
    `num_cpus`, `num_gpus`, and any name of the cluster's own. actors: how many an instance on this
    machine has to hold. Raises PrunerZeroError where Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str | None, needed: Mapping[str, float], actors: int) -> None:
        self.ray = _import_ray()
        self.needed = needed
        self.started = not self.ray.is_initialized()
        if self.started:
            self._connect(address, needed.get("num_cpus", 0) * actors)
        errors = self.ray.exceptions
        # The errors that the calls of an actor raise when the actor has died.
        self.died: tuple[type[BaseException], ...] = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        )

    def remote(self, kind: type) -> Any:
        """`kind` as actors, with the resources that each needs. Raises PrunerZeroError."""
        named = {name: amount for name, amount in self.needed.items() if name in _NAMES}
        custom = {name: amount for name, amount in self.needed.items() if name not in _NAMES}
        try:
            return self.ray.remote(kind).options(**named, resources=custom)
        except ValueError as error:
            raise PrunerZeroError(f"--ray-resources: {one_line(error)}") from error

    def actors_that_fit(self) -> int:
        """How many actors the cluster holds. Raises PrunerZeroError where it holds none."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        shares = [
            [
                node.get(_NAMES.get(name, name), 0) // amount
                for name, amount in self.needed.items()
                if amount
            ]
            for node in nodes
        ]
        fit = int(sum(min(amounts, default=1) for amounts in shares))
        if not fit:
            asked = ", ".join(f"{name}={amount:g}" for name, amount in self.needed.items())
            raise PrunerZeroError(
                f"no machine of the Ray cluster has what an actor needs ({asked}): "
                "change --ray-resources"
            )
        return fit

    def close(self) -> None:
        """Stop Ray where it was started here."""
        if self.started:
            self.ray.shutdown()
        self.started = False

    def _connect(self, address: str | None, cpus: float) -> None:
        address = _resolved(address)
        given: dict[str, Any] = {}
        if address == "local":
            # Ray only counts CPUs: as many as the actors need, at least those of the machine.
            given = {"num_cpus": max(math.ceil(cpus), os.cpu_count() or 1)}
            given["include_dashboard"] = False
        try:
            _reach(address)
            self.ray.init(address, log_to_driver=False, logging_level="error", **given)
        except (OSError, RuntimeError, ValueError) as error:
            raise _unusable(address, error) from error


# The names in Ray's options, and in the resources of its nodes.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def check_cluster(address: str | None) -> None:
    """Raise PrunerZeroError where Ray is not installed or nothing listens at `address`.

    address: as `RayCluster` takes it. A Ray that is initialised already is not checked.
    """
    if _import_ray().is_initialized():
        return
    address = _resolved(address)
    try:
        _reach(address)
    except (OSError, ValueError) as error:
        raise _unusable(address, error) from error


def _resolved(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _unusable(address: str, error: Exception) -> PrunerZeroError:
    return PrunerZeroError(
        f"no Ray cluster can be used at {address}: start one (ray start --head), or give another "
        f"--ray-address ({one_line(error)})"
    )


def _reach(address: str) -> None:
    """Raise OSError where nothing listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise PrunerZeroError(
            "--executor ray needs Ray: pip install ray, or choose --executor processes"
        ) from error
    return ray
