"""On a Ray cluster, the same promises."""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.executor import Executor, SerialExecutor, own_parameters
from pruner_zero.evolution.ray_executor import RayExecutor
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.packing import pack, unpack
from pruner_zero.settings import read_settings
from tests.conftest import RAY_STORE, settles
from tests.evolution.conftest import Build, tiny_settings
from tests.evolution.executor_suite import (
    TASKS,
    Scripted,
    Start,
    WorkerSuite,
    ended,
    opened,
    script,
    scripted,
    timeless,
    values,
)
from tests.evolution.test_run import journal, run

__all__ = ["opened", "scripted"]


@pytest.fixture
def alone() -> None:
    """No Ray is initialised."""
    ray.shutdown()


@pytest.mark.slow
class TestRay(WorkerSuite):
    @pytest.fixture
    def start(self, connected: Cluster, opened: Callable[[Executor], Executor]) -> Start:
        def make(evaluator: Any, time_limit: float = 600.0) -> Executor:
            return opened(RayExecutor(evaluator, 2, time_limit=time_limit))

        return make


@pytest.mark.slow
def test_a_ray_that_the_user_initialised_is_left_as_it_is(
    connected: Cluster, scripted: Scripted
) -> None:
    executor = RayExecutor(cast(Evaluator, scripted), 1)
    assert values(list(executor.map(script("work")))) == [0.0]
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
    executor = RayExecutor(cast(Evaluator, scripted), address=address)
    assert ray.get_runtime_context().gcs_address == cluster.address
    assert len(executor.places) == 2
    assert values(list(executor.map(script("work", "work")))) == [0.0, 1.0]
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
    executor = RayExecutor(cast(Evaluator, scripted), 3)
    assert values(list(executor.map(script("work", "slow", "work")))) == [0.0, 1.0, 2.0]
    executor.close()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_an_actor_goes_where_the_resources_are_that_it_needs(
    connected: Cluster, scripted: Scripted, opened: Callable[[Executor], Executor]
) -> None:
    executor = RayExecutor(cast(Evaluator, scripted), resources={"special": 1})
    opened(executor)
    assert len(executor.places) == 1
    assert values(list(executor.map(script("work")))) == [0.0]
    with pytest.raises(PrunerZeroError, match=r"\(num_cpus=1, num_gpus=1\): change --ray-res"):
        RayExecutor(cast(Evaluator, scripted), 1, resources={"num_gpus": 1})
    with pytest.raises(PrunerZeroError, match=r"--ray-resources: .*num_cpus"):
        RayExecutor(cast(Evaluator, scripted), 1, resources={"CPU": 1})


@pytest.mark.fault("a worker dies: once, twice on one candidate, while idle, with its machine")
@pytest.mark.slow
def test_a_machine_that_is_lost_loses_no_task(
    connected: Cluster, scripted: Scripted, opened: Callable[[Executor], Executor]
) -> None:
    doomed = connected.add_node(num_cpus=1, object_store_memory=RAY_STORE)
    assert settles(lambda: ray.cluster_resources()["CPU"] == 3)
    executor = opened(RayExecutor(cast(Evaluator, scripted), 3))
    assert len(list(executor.map(script(*["slow"] * 9)))) == 9
    outcomes = executor.map(script(*["slow"] * 12))
    first = next(outcomes)
    # Where it ran no other actor has room: two go on while the third waits for a machine.
    connected.remove_node(doomed, allow_graceful=False)
    assert values([first, *outcomes]) == [float(number) for number in range(12)]


@pytest.mark.slow
def test_a_search_on_a_cluster_leaves_the_same_archive(
    connected: Cluster, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "serial", text_file)
    run(llama_folder, tmp_path / "ray", text_file, executor="ray", workers=2)
    assert journal(tmp_path / "ray") == journal(tmp_path / "serial")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_clear_line(alone: None, scripted: Scripted) -> None:
    with pytest.raises(PrunerZeroError, match=r"at 127.0.0.1:1: .*--ray-address") as refusal:
        RayExecutor(cast(Evaluator, scripted), address="127.0.0.1:1")
    assert "\n" not in str(refusal.value)


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, scripted: Scripted
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PrunerZeroError, match=r"pip install 'pruner-zero\[ray\]'"):
        RayExecutor(cast(Evaluator, scripted))


def test_the_settings_of_ray_do_not_change_what_is_found() -> None:
    plain = tiny_settings()
    texts = tiny_settings(executor="ray", ray_resources=["num_cpus=2", "special=0.5"])
    assert texts.ray_resources == {"num_cpus": 2.0, "special": 0.5}
    assert texts.identity() == plain.identity()
    assert tiny_settings(ray_resources={"num_gpus": 1}, ray_address="auto").identity() == (
        plain.identity()
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [(["num_gpus"], "such as num_gpus=1"), (["a=b"], "--ray-resources"), ({"a": -1}, "greater")],
)
def test_bad_resources_are_one_clear_line(given: Any, line: str) -> None:
    settings = {**tiny_settings().model_dump(exclude_unset=True), "ray_resources": given}
    with pytest.raises(PrunerZeroError, match=line):
        read_settings(SearchSettings, settings)


def test_what_is_packed_comes_back_as_it_was_and_shares_the_arrays() -> None:
    base = torch.arange(24, dtype=torch.bfloat16).view(4, 6)
    given = {
        "base": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "mask": base > 4,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    given["tied"] = given["parameter"]
    stream, arrays = pack(cast(Evaluator, given))
    read = cast(dict[str, torch.Tensor], unpack((stream, arrays)))
    for name, tensor in given.items():
        assert torch.equal(read[name], tensor)
        assert read[name].stride() == tensor.stride()
        assert read[name].dtype == tensor.dtype
        assert type(read[name]) is type(tensor)
    assert read["tied"] is read["parameter"]
    # One array for `base` and its views, one for each of mask, scalar and parameter.
    assert sorted(array.nbytes for array in arrays) == [4, 24, 24, 48]
    starts = {array.ctypes.data for array in arrays}
    assert {one.untyped_storage().data_ptr() for one in read.values() if one.numel()} == starts


def test_an_actor_changes_only_weights_of_its_own(build: Build) -> None:
    wanted = timeless(list(SerialExecutor(build()).map(TASKS)))
    stream, arrays = pack(build())
    for array in arrays:
        array.flags.writeable = False
    before = [array.copy() for array in arrays]
    evaluators = [own_parameters(unpack((stream, arrays))) for _ in range(2)]
    for evaluator in evaluators:
        assert timeless(list(SerialExecutor(evaluator).map(TASKS))) == wanted
    assert all((array == was).all() for array, was in zip(arrays, before, strict=True))
    pointers = [
        {one.parameter.data_ptr() for one in evaluator.masked.matrices} for evaluator in evaluators
    ]
    assert not pointers[0] & pointers[1]
