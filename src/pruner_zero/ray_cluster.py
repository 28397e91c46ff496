"""A Ray cluster: joined or started, asked what it holds, left as it was found."""

import math
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from pruner_zero.errors import PrunerZeroError

# Seconds a cluster has to answer.
CONNECT_TIMEOUT = 10.0


class RayCluster:
    """A connection to Ray, for actors, or tasks, that all need the same.

    address: of a cluster, else $RAY_ADDRESS, else an instance on this machine; a Ray that is
    initialised already is used and left as it is. needed: the resources of each actor,
    `num_cpus`, `num_gpus`, and any the cluster names itself; actors: how many an instance on
    this machine has to hold. user, instead: what wants Ray, and what goes without it. Raises
    PrunerZeroError where Ray is not installed or no cluster answers.
    """

    def __init__(
        self,
        address: str | None,
        needed: Mapping[str, float],
        actors: int,
        *,
        user: str,
        instead: str,
    ) -> None:
        self.ray = _import_ray(user, instead)
        self.needed = needed
        self.started = not self.ray.is_initialized()
        if self.started:
            self._connect(address, needed.get("num_cpus", 0) * actors)
        errors = self.ray.exceptions
        # What the answers of an actor raise when it has died.
        self.died: tuple[type[BaseException], ...] = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        )

    def remote(self, kind: Callable[..., Any], **options: Any) -> Any:
        """`kind` as actors, or as tasks, with what each of them needs. Raises PrunerZeroError."""
        own = {name: amount for name, amount in self.needed.items() if name in _NAMES}
        others = {name: amount for name, amount in self.needed.items() if name not in _NAMES}
        try:
            return self.ray.remote(kind).options(**own, resources=others, **options)
        except ValueError as error:
            raise PrunerZeroError(f"--ray-resources: {_one_line(error)}") from error

    def actors_that_fit(self) -> int:
        """How many actors the nodes hold as they are. Raises PrunerZeroError where none."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        shares = [
            [
                node.get(_NAMES.get(name, name), 0) // amount
                for name, amount in self.needed.items()
                if amount
            ]
            for node in nodes
        ]
        fit = int(sum(min(own, default=1) for own in shares))
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


# What Ray calls in its options and in its nodes' resources.
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _import_ray(user: str, instead: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise PrunerZeroError(
            f"{user} needs Ray: pip install 'pruner-zero[ray]', or {instead}"
        ) from error
    return ray
