"""Fixtures for all tests: one thread, a cache of their own, a saved model and a text."""

import gc
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.processes import PRELOADED, Forked
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

RAY_STORE = 100 * 2**20


def pytest_configure(config: pytest.Config) -> None:
    """The marker of the fault catalogue, `python -m tests.faults`."""
    config.addinivalue_line(
        "markers", "fault(name, holds): a fault that is really made, and what must hold then"
    )


def pytest_collection_finish() -> None:
    """Spare what is loaded by now, which is never garbage, from every later collection of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Restore SIGINT, which a shell's background job ignores and its commands would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, since threads only wait for each other here, and a cache not the user's."""
    variables = {
        "OMP_NUM_THREADS": "1",
        "PRUNER_ZERO_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    torch.set_num_threads(1)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def _warm_forks() -> Iterator[None]:
    """Every process is forked from a server that has loaded the program, whoever starts it.

    A server for the workers of a search alone loads less, and each command that is then forked
    from it would import the rest anew, which takes seconds.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "set_forkserver_preload", lambda modules: None)
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first fork waits for torch to load; no test is to count that."""
    assert Forked("--version", log=tmp_path_factory.mktemp("warm") / "log").end() == 0


def save_tiny(folder: Path, architecture: str = "llama", seed: int = 0, blocks: int = 2) -> Path:
    """A tiny random model with its tokenizer, saved as a user's would be."""
    tiny_model(architecture, seed, blocks).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_sharded(
    folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """A tiny random model of three blocks in several files, saved as a large one would be."""
    tiny_model(architecture, blocks=3).to(dtype).save_pretrained(folder, max_shard_size="30KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny LLaMA of two blocks. Tests must not write to it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def cluster() -> Iterator["Cluster"]:
    """A Ray cluster, two nodes of one CPU each, the second with a resource of its own.

    One for all tests: Ray mixes up two clusters that one process joins in turn.
    """
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": RAY_STORE, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray_cluster = Cluster(initialize_head=True, head_node_args=head)
        ray_cluster.add_node(num_cpus=1, object_store_memory=RAY_STORE, resources={"special": 1})
        yield ray_cluster
        ray.shutdown()
        ray_cluster.shutdown()


@pytest.fixture
def connected(cluster: "Cluster") -> "Cluster":
    """The cluster, to which the user has connected."""
    import ray

    if not ray.is_initialized():
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
    return cluster


def settles(holds: Callable[[], bool]) -> bool:
    """Whether something becomes true within twenty seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not holds():
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="session")
def prose() -> str:
    """About 6000 tokens (bytes) of made-up words."""
    generator = random.Random(0)
    letters = "etaoinshrdlucmwfg"
    words = ["".join(generator.choices(letters, k=generator.randint(1, 8))) for _ in range(1100)]
    return " ".join(words)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A text file to calibrate and to measure on."""
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text(prose)
    return file
