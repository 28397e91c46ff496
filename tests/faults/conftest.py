"""What the faults share: where their random moments come from, and the verbs they fall upon."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import save_tiny
from tests.faults import SEED
from tests.faults.verbs import VERBS, Verb, run
from tests.recovery.conftest import save_pruned

Tried = Callable[[int], None]
MakeVerb = Callable[[str], Verb]


def pytest_report_header() -> str:
    """Tell the seed, so that a failure can be had again."""
    return f"{SEED}={os.environ.get(SEED, '0')}"


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> random.Random:
    """Decides when and where a fault happens, by $FAULT_SEED and the name of the test."""
    return random.Random(f"{os.environ.get(SEED, '0')} {request.node.name}")


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    """Tells the catalogue how often a test has made its fault, where that is not once."""
    return lambda times: record_property("tried", times)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense and a pruned model of four blocks, long enough at work to be hit."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "dense": save_tiny(folder / "dense", blocks=4),
        "pruned": save_pruned(folder / "pruned", blocks=4),
    }


@pytest.fixture
def verb(request: pytest.FixtureRequest, models: dict[str, Path], text_file: Path) -> Verb:
    """The verb that the test is parametrised by."""
    made = VERBS[request.param]
    return made(models["pruned" if request.param == "recover" else "dense"], text_file)


class Whole(NamedTuple):
    """What a run makes that nothing disturbs: its folder, not to be written to, and its result."""

    folder: Path
    result: Any


@pytest.fixture(scope="session")
def finished() -> dict[str, Whole]:
    """The undisturbed runs of this session by verb."""
    return {}


@pytest.fixture
def whole(
    request: pytest.FixtureRequest,
    verb: Verb,
    finished: dict[str, Whole],
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    """The undisturbed run of the verb that the test is parametrised by."""
    name = request.node.callspec.params["verb"]
    if name not in finished:
        folder = tmp_path_factory.mktemp("whole")
        outcome = run(*verb.arguments(folder))
        assert outcome.code == 0, outcome.err
        finished[name] = Whole(folder, verb.result(folder))
    return finished[name]


@pytest.fixture(scope="session")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned tiny LLaMA. Not to be written to."""
    return save_pruned(tmp_path_factory.mktemp("pruned") / "llama")
