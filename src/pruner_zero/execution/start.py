"""The executor of a search: Ray where a cluster is named, else processes, or this process."""

import os
from typing import TypeVar

from pruner_zero.execution.executor import Executor, SerialExecutor, Work, usable_cores
from pruner_zero.execution.processes import ProcessExecutor

T = TypeVar("T")
R = TypeVar("R")


def make_executor(
    work: Work[T, R], count: int | None, address: str | None, *, shareable: bool = True
) -> Executor[T, R]:
    """The executor of `count` workers; address: of a Ray cluster, see `cluster_of`.

    count: None for one a core, or as many as the cluster holds. shareable: whether the work lies in
    main memory, where processes share it. Where it does not, one worker is the default.
    """
    if address is not None:
        # Ray is optional, and takes seconds to import.
        from pruner_zero.execution.ray_actors import RayExecutor

        return RayExecutor(work, count, address)
    count = count or (usable_cores() if shareable else 1)
    return SerialExecutor(work) if count == 1 else ProcessExecutor(work, count)


def cluster_of(address: str | None) -> str | None:
    """The Ray cluster at `address`, else at $RAY_ADDRESS; None where neither is given.

    Raises PrunerZeroError where Ray is not installed or nothing listens there: to be called before
    the work is made, which takes minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        from pruner_zero.execution.ray_actors import check_cluster

        check_cluster(address)
    return address
