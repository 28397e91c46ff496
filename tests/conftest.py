"""What all rooms' tests share: one thread, a cache of their own, a saved model and a text."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell's background job ignores interruptions, and would hand that on to every command."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, for threads only wait for each other here, and no trace in the user's cache."""
    given = {
        "OMP_NUM_THREADS": "1",
        "PRUNER_ZERO_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    torch.set_num_threads(1)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def save_tiny(folder: Path, architecture: str = "llama", seed: int = 0, blocks: int = 2) -> Path:
    """A tiny random model with its tokenizer, saved as a user's would be."""
    tiny_model(architecture, seed, blocks).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny LLaMA of two blocks. Not to be written to."""
    return save_tiny(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def prose() -> str:
    """About 6000 tokens (bytes) of made-up words."""
    generator = random.Random(0)
    letters = "etaoinshrdlucmwfg"
    made = ["".join(generator.choices(letters, k=generator.randint(1, 8))) for _ in range(1100)]
    return " ".join(made)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A text file to calibrate and to measure on."""
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text(prose)
    return file
