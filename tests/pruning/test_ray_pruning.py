"""Matrices pruned on a Ray cluster: the bytes of one process, whatever dies on the way."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from pruner_zero.comparison import compare
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel, find_matrices
from pruner_zero.pruning import PruneSettings, parse_method, prune
from pruner_zero.pruning.ray_pruning import ray_pruner
from pruner_zero.pruning.record import MatrixRecord
from pruner_zero.pruning.scoring import Job, Statistics, prune_here
from pruner_zero.settings import read_settings
from tests.conftest import save_tiny
from tests.pruning.conftest import language_model
from tests.text.refusals import refusal

RUNS: dict[str, dict[str, Any]] = {
    "sequential": {"metric": "W * G * X", "sparsity": 0.5},
    "one-shot": {"metric": "W * X", "sparsity": 0.5, "mode": "one-shot"},
    "no activations": {"metric": "magnitude", "pattern": "2:4"},
    "global": {"metric": "mms(W) * G", "sparsity": 0.5, "scope": "global"},
    "sparsegpt": {"metric": "sparsegpt", "pattern": "2:4"},
    "everything": {"metric": "wanda@error+asymmetric+refine+exact", "sparsity": 0.5},
}


def pruned(model: Path, text: Path, output: Path, **settings: Any) -> dict[str, bytes]:
    """The weights and the record of what was done to each matrix."""
    cache = output.parent / "cache"
    prune(model, calibration=text, windows=4, seqlen=12, output=output, cache=cache, **settings)
    return {file.name: file.read_bytes() for file in output.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_any_number_of_workers_leaves_the_bytes_of_one_process(
    run: str, connected: Cluster, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    expected = pruned(llama_folder, text_file, tmp_path / "serial", **RUNS[run])
    for workers in (1, 2, 4):
        output = tmp_path / f"{workers} workers"
        found = pruned(llama_folder, text_file, output, pruning_workers=workers, **RUNS[run])
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_matrices_that_are_views_come_back_to_their_place(
    architecture: str, connected: Cluster, text_file: Path, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model", architecture)
    given = {"metric": "sparsegpt", "sparsity": 0.5}
    expected = pruned(folder, text_file, tmp_path / "serial", **given)
    assert pruned(folder, text_file, tmp_path / "ray", pruning_workers=2, **given) == expected


@pytest.mark.slow
def test_a_comparison_finds_the_same_rows(
    connected: Cluster, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    def rows(**given: Any) -> list[tuple[Any, ...]]:
        table = compare(
            llama_folder,
            "dense,wanda,sparsegpt",
            calibration=text_file,
            text=text_file,
            cache=tmp_path / "cache",
            windows=4,
            seqlen=12,
            windows_eval=2,
            sparsity=0.5,
            **given,
        )
        return [(row["method"], row["losses"], row["sparsity"]) for row in table.rows]

    assert rows(pruning_workers=2) == rows()


@dataclass(frozen=True)
class Deadly(Job):
    """Kills the process that runs it, so many times."""

    folder: Path = Path()
    times: int = 0

    def run(self) -> MatrixRecord:
        deaths = len(list(self.folder.iterdir()))
        if deaths < self.times:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run()


@dataclass(frozen=True)
class Refusing(Job):
    """Cannot be done."""

    def run(self) -> MatrixRecord:
        raise PrunerZeroError("no such luck: choose another")


def jobs(model: LanguageModel, kind: type[Job] = Job, at: int = -1, **given: Any) -> Iterator[Job]:
    """Every matrix by its magnitude, the one at `at` by a job of another kind."""
    method = parse_method("magnitude", sparsity=0.5)
    for index, matrix in enumerate(find_matrices(model.model)):
        own = (matrix, Statistics(), method, 0.01)
        yield kind(*own, **given) if index == at else Job(*own)


@pytest.mark.slow
def test_the_matrix_of_a_worker_that_is_killed_is_pruned_again(
    connected: Cluster, tmp_path: Path
) -> None:
    serial, spread = language_model("llama"), language_model("llama")
    expected = list(prune_here(jobs(serial)))
    with ray_pruner(2) as pruner:
        records = list(pruner(jobs(spread, Deadly, at=3, folder=tmp_path, times=1)))
    assert len(list(tmp_path.iterdir())) == 1
    assert records == expected
    assert spread.fingerprint() == serial.fingerprint()


@pytest.mark.slow
def test_a_matrix_that_kills_its_worker_twice_is_one_clear_line(
    connected: Cluster, tmp_path: Path
) -> None:
    model = language_model("llama")
    name = find_matrices(model.model)[3].name
    with ray_pruner(2) as pruner:
        deadly = jobs(model, Deadly, at=3, folder=tmp_path, times=2)
        message = refusal(lambda: list(pruner(deadly)))
    assert message.startswith(f"a pruning worker died twice at {name}: ")
    assert "--pruning-workers" in message
    assert "\n" not in message


@pytest.mark.slow
def test_what_a_worker_refuses_is_refused_here(connected: Cluster) -> None:
    with ray_pruner(2) as pruner:
        refused = jobs(language_model("llama"), Refusing, at=2)
        assert refusal(lambda: list(pruner(refused))) == "no such luck: choose another"
    assert ray.is_initialized()


@pytest.mark.slow
def test_jobs_are_made_as_there_is_room_for_them(connected: Cluster) -> None:
    made = 0

    def counted() -> Iterator[Job]:
        nonlocal made
        for job in jobs(language_model("llama")):
            made += 1
            yield job

    with ray_pruner(1) as pruner:
        records = pruner(counted())
        assert made == 0
        for done, _ in enumerate(records, 1):
            assert made <= done + 1


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_workers(
    connected: Cluster, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    given = RUNS["sequential"]
    expected = pruned(llama_folder, text_file, tmp_path / "serial", **given)
    output = tmp_path / "ray"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruner_zero.pruning.pipeline._run_windows", Stops(after=1))
        with pytest.raises(KeyboardInterrupt):
            pruned(llama_folder, text_file, output, pruning_workers=2, **given)
    assert not output.exists()
    assert (tmp_path / "ray.partial").is_dir()
    assert pruned(llama_folder, text_file, output, pruning_workers=1, **given) == expected
    assert ray.is_initialized()


class Stops:
    """Runs windows through a block so often, and then is interrupted."""

    def __init__(self, after: int) -> None:
        from pruner_zero.pruning import pipeline

        self.run, self.left = pipeline._run_windows, after

    def __call__(self, *given: Any) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.run(*given)


@pytest.mark.slow
def test_resources_that_no_machine_has_are_one_clear_line(connected: Cluster) -> None:
    message = refusal(lambda: ray_pruner(1, None, {"num_gpus": 1}).__enter__())
    assert "(num_cpus=1, num_gpus=1): change --ray-resources" in message


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refusal(lambda: ray_pruner(1).__enter__())
    assert message == (
        "--pruning-workers needs Ray: pip install 'pruner-zero[ray]', or leave them out"
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"pruning_workers": 0}, "--pruning-workers is 0"),
        ({"pruning_workers": 2, "offload": True}, "--offload"),
        ({"pruning_workers": 2, "ray_resources": ["num_gpus"]}, "such as num_gpus=1"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(given: Any, line: str) -> None:
    told = {"model": "m", "calibration": "c", "sparsity": 0.5, **given}
    with pytest.raises(PrunerZeroError, match=line):
        read_settings(PruneSettings, told)


def test_workers_of_either_kind_may_be_told_where_to_run() -> None:
    told = {"model": "m", "calibration": "c", "sparsity": 0.5, "ray_address": "a:1"}
    assert read_settings(PruneSettings, {**told, "pruning_workers": 2}).ray_address == "a:1"
