"""The executors by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from pruner_zero.errors import PrunerZeroError
from pruner_zero.execution.executor import (
    AnyWork,
    Executor,
    SerialExecutor,
    Work,
    Workers,
    usable_cores,
)
from pruner_zero.execution.processes import ProcessExecutor
from pruner_zero.plugins import Registry

T = TypeVar("T")
R = TypeVar("R")


def _ray(work: AnyWork, workers: Workers) -> Executor[Any, Any]:
    # Ray is optional, and takes seconds to import.
    from pruner_zero.execution.ray_actors import RayExecutor

    return RayExecutor(work, workers)


EXECUTORS: Registry[Callable[[AnyWork, Workers], Executor[Any, Any]]] = Registry(
    "executors", object, {"serial": SerialExecutor, "processes": ProcessExecutor, "ray": _ray}
)


def check_executor(name: str | None, workers: Workers) -> None:
    """Check what `make_executor` needs, before the work is there, which takes minutes.

    Raises PrunerZeroError for several workers of the serial executor, and for a missing Ray.
    """
    if name == "serial" and (workers.count or 1) > 1:
        raise PrunerZeroError(
            "--executor serial is one worker: give --workers 1, or --executor processes"
        )
    if name == "ray":
        from pruner_zero.execution.ray_actors import check_cluster

        check_cluster(workers.ray_address)


def make_executor(
    name: str | None, work: Work[T, R], workers: Workers, *, shareable: bool = True
) -> Executor[T, R]:
    """The executor of that name; by default processes where there is more than one worker.

    shareable: whether the work lies in main memory, where processes share it. Where it does not,
    one worker is the default.
    """
    if workers.count is None and name != "ray":
        cores = usable_cores() if shareable and name != "serial" else 1
        workers = replace(workers, count=max(1, cores // workers.threads))
    return EXECUTORS[name or ("serial" if workers.count == 1 else "processes")](work, workers)
