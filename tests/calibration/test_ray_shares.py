"""Shares on a Ray cluster: the bits of shares in one process, whatever dies on the way."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from pruner_zero.calibration import CalibrationWorkers, calibrate, open_store
from pruner_zero.calibration.ray_shares import RayShares, ray_shares
from pruner_zero.calibration.shares import Share, share_gradients, share_inputs
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, load_offloaded
from pruner_zero.progress import SILENT
from pruner_zero.pruning import PruneSettings, prune
from pruner_zero.settings import read_settings
from tests.calibration.test_calibrate import KINDS, NOTHING, Work, tiny, windows
from tests.calibration.test_shares import TOKENS, WINDOWS, files, in_shares
from tests.conftest import RAY_STORE, settles
from tests.text.refusals import refusal

SHARES = 3


def text() -> Any:
    return windows(count=WINDOWS, seqlen=TOKENS)


def opened(language_model: LanguageModel, workers: CalibrationWorkers) -> Any:
    return ray_shares(language_model.model, text().tokens, workers)


def die(share: Share, folder: Path, only: int, times: int) -> int:
    """Kill the actor of the share whose tokens sum up to `only`, so many times."""
    total = int(share.windows.sum())
    deaths = len(list(folder.iterdir()))
    if total == only and deaths < times:
        (folder / str(deaths)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return total


class Killed:
    """Ray shares of which one is killed before the step that is the `at`-th of all."""

    def __init__(self, shares: RayShares, at: int, place: int) -> None:
        self.shares, self.at, self.place = shares, at, place
        self.windows, self.longest = shares.windows, shares.longest

    def begin(self) -> None:
        self.shares.begin()

    def map(self, step: Any) -> Any:
        self.at -= 1
        answers = self.shares.map(step)
        if self.at == 0:
            # Once it is at work.
            first = next(answers)
            actor = self.shares.places[self.place].actor
            ray.kill(actor)
            yield first
        yield from answers


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_cluster_finds_the_bits_of_shares_in_one_process(
    architecture: str, connected: Cluster, tmp_path: Path
) -> None:
    language_model = tiny(architecture)
    store = open_store(language_model, text(), folder=tmp_path / "ray")
    # Three shares, and room for two actors.
    calibrate(language_model, text(), KINDS, store, workers=CalibrationWorkers(SHARES))
    assert files(store) == files(in_shares(language_model, SHARES, tmp_path / "here"))
    work = Work(language_model.model)
    again = open_store(language_model, text(), folder=tmp_path / "ray")
    assert work.of(lambda: calibrate(language_model, text(), KINDS, again)) == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
# Two windows at most a share: steps 1 and 2 are backwards, 3 and 4 take gradients.
@pytest.mark.parametrize("at", [2, 4, 6])
def test_the_shares_of_an_actor_that_is_killed_are_taken_again(
    at: int, place: int, connected: Cluster, tmp_path: Path
) -> None:
    language_model = tiny()
    model = language_model.model
    store = open_store(language_model, text(), folder=tmp_path / "ray")
    with opened(language_model, CalibrationWorkers(SHARES)) as shares:
        killed = Killed(shares, at, place)
        share_gradients(model, killed, store, norm="l2", progress=SILENT)
        share_inputs(model, killed, store, gram=True, progress=SILENT)
        assert sorted(shares.deaths) in ([0, 0, 1], [0, 1, 1])
    assert files(store) == files(in_shares(language_model, SHARES, tmp_path / "here"))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_windows_that_kill_a_worker_twice_are_one_clear_line(
    times: int, connected: Cluster, tmp_path: Path
) -> None:
    totals = [int(part.sum()) for part in text().tokens.tensor_split(2)]
    with opened(tiny(), CalibrationWorkers(2)) as shares:
        shares.begin()
        step = partial(die, folder=tmp_path, only=totals[1], times=times)
        if times == 1:
            assert list(shares.map(step)) == totals
            return
        message = refusal(lambda: list(shares.map(step)))
    assert "died twice" in message
    assert "--calibration-workers" in message
    assert "\n" not in message


@pytest.mark.slow
def test_a_machine_that_is_lost_leaves_its_share_to_another(
    connected: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.calibration.ray_shares.START_LIMIT", 5.0)
    doomed = connected.add_node(
        num_cpus=1, object_store_memory=RAY_STORE, resources={"doomed": 1, "own": 1}
    )
    kept = connected.add_node(num_cpus=1, object_store_memory=RAY_STORE, resources={"own": 1})
    language_model = tiny()
    store = open_store(language_model, text(), folder=tmp_path / "ray")
    try:
        with opened(language_model, CalibrationWorkers(2, None, {"own": 1})) as shares:
            assert len(shares.places) == 2
            shares.begin()
            list(shares.map(partial(Share.backward, window=0, norm="l2")))
            connected.remove_node(doomed, allow_graceful=False)
            assert settles(lambda: any(gone(place.actor) for place in shares.places))
            share_inputs(language_model.model, shares, store, gram=True, progress=SILENT)
            assert [sorted(place.shares) for place in shares.places] == [[0, 1]]
            assert sum(shares.deaths) == 1
    finally:
        connected.remove_node(kept)
    expected = files(in_shares(language_model, 2, tmp_path / "here"))
    found = files(store)
    assert found == {name: expected[name] for name in found}


def gone(actor: Any) -> bool:
    try:
        ray.get(actor.ready.remote())
    except ray.exceptions.RayActorError:
        return True
    return False


@pytest.mark.slow
def test_what_calibration_refuses_on_an_actor_is_refused_here(connected: Cluster) -> None:
    with opened(tiny(), CalibrationWorkers(2)) as shares:
        shares.begin()
        assert refusal(lambda: list(shares.map(_refuse))) == "no such luck: choose another"


def _refuse(share: Share) -> None:
    raise PrunerZeroError("no such luck: choose another")


@pytest.mark.slow
def test_a_ray_that_the_user_initialised_is_left_as_it_is(connected: Cluster) -> None:
    with opened(tiny(), CalibrationWorkers(1)) as shares:
        shares.begin()
    assert ray.is_initialized()


@pytest.mark.slow
def test_prune_spreads_what_it_asks_of_the_dense_model(
    connected: Cluster, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    def pruned(name: str, **settings: Any) -> bytes:
        prune(
            llama_folder,
            "W * G * X",
            sparsity=0.5,
            mode="one-shot",
            calibration=text_file,
            windows=4,
            seqlen=12,
            output=tmp_path / name,
            cache=tmp_path / f"cache of {name}",
            **settings,
        )
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert pruned("ray", calibration_workers=2) == pruned("serial")
    spread, serial = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("G-*.safetensors")}
        for folder in (tmp_path / "cache of ray", tmp_path / "cache of serial")
    )
    # One key for both, and sums of two shares: (a + b) + (c + d) for ((a + b) + c) + d.
    assert spread.keys() == serial.keys()
    assert spread != serial


@pytest.mark.slow
def test_resources_that_no_machine_has_are_one_clear_line(connected: Cluster) -> None:
    workers = CalibrationWorkers(1, None, {"num_gpus": 1})
    message = refusal(lambda: opened(tiny(), workers).__enter__())
    assert "(num_cpus=1, num_gpus=1): change --ray-resources" in message


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refusal(lambda: opened(tiny(), CalibrationWorkers(1)).__enter__())
    assert message == (
        "--calibration-workers needs Ray: pip install 'pruner-zero[ray]', or leave them out"
    )


def test_a_model_on_disk_is_not_spread(llama_folder: Path, tmp_path: Path) -> None:
    language_model = load_offloaded(str(llama_folder))
    store = open_store(language_model, text(), folder=tmp_path)
    workers = CalibrationWorkers(2)
    message = refusal(lambda: calibrate(language_model, text(), ["X"], store, workers=workers))
    assert "--offload" in message


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"ray_address": "auto"}, "for --calibration-workers or --pruning-workers: add one"),
        ({"ray_resources": ["num_gpus=1"]}, "for --calibration-workers or --pruning-workers"),
        ({"calibration_workers": 2, "ray_resources": ["num_gpus"]}, "such as num_gpus=1"),
        ({"calibration_workers": 0}, "--calibration-workers is 0"),
        ({"calibration_workers": 2, "offload": True, "metric": "gblm"}, "--offload"),
        ({"calibration_workers": 2, "metric": "wanda"}, "--mode one-shot"),
    ],
)
def test_settings_that_spread_nothing_are_one_clear_line(given: Any, line: str) -> None:
    told = {"model": "m", "calibration": "c", "sparsity": 0.5, **given}
    with pytest.raises(PrunerZeroError, match=line):
        read_settings(PruneSettings, told)


def test_workers_are_made_of_the_settings() -> None:
    told = {"model": "m", "calibration": "c", "sparsity": 0.5, "metric": "gblm"}
    assert read_settings(PruneSettings, told).workers_of_calibration is None
    told |= {"calibration_workers": 2, "ray_address": "a:1", "ray_resources": ["num_cpus=2"]}
    assert read_settings(PruneSettings, told).workers_of_calibration == CalibrationWorkers(
        2, "a:1", {"num_cpus": 2.0}
    )
