"""An executor on a Ray cluster keeps the same promises."""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from pruner_zero.errors import PrunerZeroError
from pruner_zero.execution.executor import Executor, Work
from pruner_zero.execution.ray_actors import RayExecutor
from tests.conftest import RAY_STORE, settles
from tests.execution.worker_suite import (
    Scripted,
    Start,
    WorkerSuite,
    ended,
    opened,
    script,
    scripted,
)

Opened = Callable[[Executor[Any, Any]], Executor[Any, Any]]

__all__ = ["opened", "scripted"]


@pytest.fixture
def alone() -> None:
    """No Ray is initialised."""
    ray.shutdown()


@pytest.mark.slow
class TestRay(WorkerSuite):
    @pytest.fixture
    def begin(self, connected: Cluster, opened: Opened) -> Start:
        def make(work: Work[Any, Any], time_limit: float = 600.0) -> Executor[Any, Any]:
            return opened(RayExecutor(work, 2, time_limit=time_limit))

        return make


@pytest.mark.slow
def test_a_ray_that_the_user_initialised_is_left_as_it_is(
    connected: Cluster, scripted: Scripted
) -> None:
    executor = RayExecutor(scripted, 1)
    assert list(executor.map(script("work"))) == [0]
    executor.close()
    assert ray.is_initialized()
    assert settles(lambda: ray.available_resources().get("CPU") == 2)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["setting", "environment"])
def test_a_cluster_is_joined_with_as_many_actors_as_it_holds_and_left(
    by: str, cluster: Cluster, alone: None, monkeypatch: pytest.MonkeyPatch, scripted: Scripted
) -> None:
    address = cluster.address if by == "setting" else None
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    executor = RayExecutor(scripted, address=address)
    assert ray.get_runtime_context().gcs_address == cluster.address
    assert executor.count == 2
    assert list(executor.map(script("work", "work"))) == [0, 1]
    executor.close()
    assert not ray.is_initialized()
    executor.close()


@pytest.mark.slow
def test_without_a_cluster_an_instance_is_started_and_stopped(scripted: Scripted) -> None:
    # In a process of its own: Ray mixes up two clusters that one process joins in turn.
    process = get_context("spawn").Process(target=use_local_instance, args=(scripted,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert ended(scripted.worker(0))


def use_local_instance(scripted: Scripted) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    executor = RayExecutor(scripted, 3)
    assert list(executor.map(script("work", "slow", "work"))) == [0, 1, 2]
    executor.close()
    assert not ray.is_initialized()


@pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
@pytest.mark.slow
def test_a_machine_that_is_lost_loses_no_task(
    connected: Cluster,
    scripted: Scripted,
    opened: Opened,
) -> None:
    doomed = connected.add_node(num_cpus=1, object_store_memory=RAY_STORE)
    assert settles(lambda: ray.cluster_resources()["CPU"] == 3)
    executor = opened(RayExecutor(scripted, 3))
    assert len(list(executor.map(script(*["slow"] * 9)))) == 9
    outcomes = executor.map(script(*["slow"] * 12))
    first = next(outcomes)
    # No other machine has room for its actor: two actors go on while the third waits for one.
    connected.remove_node(doomed, allow_graceful=False)
    assert [first, *outcomes] == list(range(12))


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_refused_in_one_line(
    alone: None, scripted: Scripted
) -> None:
    with pytest.raises(PrunerZeroError, match=r"at 127.0.0.1:1: .*--ray-address") as refusal:
        RayExecutor(scripted, address="127.0.0.1:1")
    assert "\n" not in str(refusal.value)


def test_without_ray_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, scripted: Scripted
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PrunerZeroError, match="pip install ray"):
        RayExecutor(scripted)
