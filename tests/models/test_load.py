"""Loading a folder, a GGUF file or a hub id; every fault is described in one line."""

import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import BertConfig, T5Config

from pruner_zero import prune
from pruner_zero.choices import Dtype
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import as_language_model, load_model
from pruner_zero.models.saving import save_model
from pruner_zero.offload.model import load_offloaded
from tests.models.gguf_file import write_gguf
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny llama."""
    save_model(LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny"), tmp_path / "tiny")
    return tmp_path / "tiny"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Save the weights of `folder` again after `change` was done to them."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_loaded_in_evaluation_mode_under_the_name_it_was_asked_by(
    folder: Path,
) -> None:
    loaded = load_model(folder)
    assert loaded.name == str(folder)
    assert not loaded.model.training
    assert loaded.tokenizer("fox")["input_ids"] == tiny_tokenizer()("fox")["input_ids"]
    assert as_language_model(folder).name == str(folder)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)],
)
def test_the_dtype_is_the_checkpoint_s_unless_asked_otherwise(
    tmp_path: Path, dtype: Dtype, expected: torch.dtype
) -> None:
    model = tiny_model("llama").bfloat16()
    save_model(LanguageModel(model, tiny_tokenizer(), "tiny"), tmp_path)
    loaded = load_model(tmp_path, dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {expected}


def test_the_weights_are_not_in_the_mapped_file_where_products_take_longer(folder: Path) -> None:
    loaded = load_model(folder)
    weights = {name: value.clone() for name, value in loaded.model.named_parameters()}
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    for name, value in loaded.model.named_parameters():
        assert torch.equal(value, weights[name])


def test_nothing_is_printed_and_the_log_level_of_transformers_comes_back(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = logging.getLogger("transformers")
    before, stderr = library.level, sys.stderr
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert (library.level, sys.stderr) == (before, stderr)


def test_a_gguf_file_is_loaded_as_an_ordinary_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_gguf(model, tmp_path / "tiny.gguf")
    loaded = load_model(tmp_path / "tiny.gguf")
    windows = tiny_windows()
    with torch.no_grad():
        assert torch.equal(loaded.model(windows).logits, model(windows).logits)
    tokens = [
        read("a fox", add_special_tokens=False)["input_ids"]
        for read in (tiny_tokenizer(), loaded.tokenizer)
    ]
    assert tokens[0] == tokens[1]
    save_model(loaded, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    again = load_model(tmp_path / "saved")
    assert again.fingerprint() == loaded.fingerprint()


def test_a_model_object_is_used_in_place() -> None:
    model, tokenizer = tiny_model("llama").train(), tiny_tokenizer()
    taken = as_language_model(model, tokenizer)
    assert taken.model is model
    assert not model.training
    assert as_language_model(taken) is taken
    assert "tokenizer=" in refusal(lambda: as_language_model(model))


def test_a_model_object_gets_the_dtype_that_is_asked_for() -> None:
    taken = as_language_model(tiny_model("llama"), tiny_tokenizer(), dtype="bfloat16")
    assert {parameter.dtype for parameter in taken.model.parameters()} == {torch.bfloat16}
    # As where transformers loads it: the frequencies of rotary embeddings stay float32.
    assert {buffer.dtype for buffer in taken.model.buffers()} == {torch.float32}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A hub cache with two revisions of `someone/tiny`: the fingerprint of each, by its name."""
    repository = tmp_path / "hub/models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    fingerprints = {}
    for seed, revision in enumerate(("main", "v2")):
        commit = str(seed) * 40
        model = LanguageModel(tiny_model("llama", seed=seed), tiny_tokenizer(), "tiny")
        save_model(model, repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
        fingerprints[revision] = model.fingerprint()
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("pruner_zero.models.load.hub_reachable", lambda: False)
    return fingerprints


@pytest.mark.parametrize("load", [load_model, load_offloaded, as_language_model])
def test_a_revision_of_a_hub_model(load: Any, hub: dict[str, str]) -> None:
    assert load("someone/tiny").fingerprint() == hub["main"]
    assert load("someone/tiny@v2").fingerprint() == hub["v2"]
    message = refusal(lambda: load("someone/tiny@v3"))
    assert "is no local folder and the Hugging Face hub did not answer in time" in message
    assert "give a folder, a .gguf file or builtin:smollm2-135m (" in message


@pytest.mark.parametrize("load", [load_model, load_offloaded])
def test_an_adapter_on_the_hub_is_refused(load: Any, hub: dict[str, str], tmp_path: Path) -> None:
    (snapshot,) = tmp_path.glob("hub/*/snapshots/" + "0" * 40)
    (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    assert "someone/tiny holds an adapter" in refusal(lambda: load("someone/tiny"))
    assert load("someone/tiny@v2").fingerprint() == hub["v2"]


def test_no_other_weights_of_a_repository_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some repositories hold the same weights in other formats, and the states of an optimizer."""
    fetched = {"model.safetensors", "model-00001-of-00002.safetensors"}
    stored = {*fetched, "consolidated.safetensors"}
    stored |= {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin"}
    stored |= {"optimizer.bin", "training_args.bin", "config.json", "LICENSE.md", "README.md"}

    def download(_repository: str, *, allow_patterns: list[str], **_: Any) -> str:
        chosen = set(filter_repo_objects(stored, allow_patterns=allow_patterns))
        assert chosen == {*fetched, "config.json", "LICENSE.md", "README.md"}
        return str(tmp_path)

    monkeypatch.setattr("pruner_zero.models.load.snapshot_download", download)
    assert "someone/tiny has no config.json" in refusal(lambda: load_model("someone/tiny"))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (torch.nn.Linear(2, 2), "a Linear is no model of transformers: pass what AutoModelForC"),
        (torch.nn.DataParallel(tiny_model("llama")), "a DataParallel is no model of transf"),
        (np.zeros(3), "a ndarray is no model of transformers"),
    ],
    ids=["layer", "parallel", "array"],
)
def test_an_object_that_is_no_model(model: Any, words: str) -> None:
    message = refusal(lambda: as_language_model(model, tiny_tokenizer()))
    assert words in message
    assert ("pass its .module" in message) == isinstance(model, torch.nn.DataParallel)
    options: dict[str, Any] = {"sparsity": 0.5, "tokenizer": tiny_tokenizer()}
    assert message == refusal(lambda: prune(model, "magnitude", **options))


# What is wrong, and the words that must tell it.


def test_a_name_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for name, words in {
        "": "empty",
        "builtin:smolm2": "did you mean 'builtin:smollm2-135m'?",
        str(tmp_path): "no config.json",
        str(tmp_path / "nix"): f"{tmp_path / 'nix'} does not exist",
        str(tmp_path / "notes.txt"): "notes.txt is not a model",
    }.items():
        assert words in refusal(lambda name=name: load_model(name))  # type: ignore[misc]


@pytest.mark.fault("pickled weights, under any name that a model folder can give them")
def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    message = refusal(lambda: load_model(folder))
    assert "pickled" in message
    assert "convert them to safetensors, with save_pretrained" in message


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: data[:9] + b"\xff\xff" + data[11:], id="header"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="header length"),
        pytest.param(lambda data: b"", id="empty"),
    ],
)
def test_broken_weights(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(lambda: load_model(folder))
    assert "damaged" in message
    assert str(folder) in message


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop(WEIGHT), f"lacks 1 of the model's weights, {WEIGHT} first"),
        (
            lambda weights: weights.update({WEIGHT: torch.zeros(3, 4)}),
            "has the shape (3, 4) where its configuration asks for (48, 32)",
        ),
    ],
)
def test_a_weight_that_is_not_the_model_s_is_not_filled_in_at_random(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    rewrite(folder, change)
    message = refusal(lambda: load_model(folder))
    assert words in message
    assert WEIGHT in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"num_hidden_layers": 1}, "has model.layers.1."),
        ({"num_hidden_layers": 1}, "its configuration describes 1 blocks"),
        ({"hidden_act": "none"}, "misses or does not know 'none' in one of its .json files"),
        ({"rope_parameters": {"rope_type": "none"}}, "misses or does not know 'none' in one of"),
        *(
            ({field: 1 << 30}, f"has {field} {1 << 30}, more than its")
            for field in ("hidden_size", "intermediate_size", "num_hidden_layers")
        ),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(
    folder: Path, value: dict[str, object], words: str
) -> None:
    """Sizes that the weights do not have take no memory."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **value}))
    message = refusal(lambda: load_model(folder))
    assert words in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("config.json", text) for text in (b"{", b"[]", b"{}", b'{"model_type": "no"}', b"\xff")),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_broken_configuration_or_tokenizer(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    assert "cannot be loaded" in refusal(lambda: load_model(folder))


@pytest.mark.parametrize(
    "config",
    [
        # Without architectures, BERT's type alone would pass: it has a causal head as well.
        BertConfig(),
        BertConfig(architectures=["BertForMaskedLM"]),
        BertConfig(architectures=["BertModel"]),
        T5Config(),
        T5Config(architectures=["T5ForConditionalGeneration"]),
    ],
)
def test_a_model_that_is_not_causal(folder: Path, config: BertConfig | T5Config) -> None:
    config.save_pretrained(folder)
    assert "not a causal language model" in refusal(lambda: load_model(folder))


def test_a_bert_that_was_told_to_be_a_decoder_is_one(folder: Path) -> None:
    BertConfig(
        is_decoder=True, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=257
    ).save_pretrained(folder)
    message = refusal(lambda: load_model(folder))  # its weights are a llama's
    assert "not a causal" not in message


def test_a_hub_that_is_slow_may_answer_as_late_as_its_library_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        started = time.monotonic()
        message = refusal(lambda: load_model("gpt2"))
    assert time.monotonic() - started < 2
    assert "hub did not answer in time ($HF_HUB_ETAG_TIMEOUT): give a folder" in message


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
@pytest.mark.parametrize(
    "data",
    [b"", b"garbage" * 100, *(b"GGUF\3\0\0\0" + 100 * byte for byte in (b"\xff", b"\1", b"\0"))],
)
def test_a_gguf_file_that_is_garbage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    message = refusal(lambda: load_model(tmp_path / "x.gguf"))
    assert f"{tmp_path / 'x.gguf'} is not a GGUF file, or a damaged one" in message


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
def test_a_gguf_file_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(tiny_model("llama"), path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cannot be loaded" in refusal(lambda: load_model(path))


@pytest.mark.parametrize("load", [load_model, load_offloaded])
def test_a_lack_of_memory_is_not_taken_for_a_fault_of_the_model(
    load: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr("pruner_zero.models.reading.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(folder)
