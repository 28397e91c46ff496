"""Pickled weights, asked for by name: the same model as from safetensors, and nothing is run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruner_zero import prune
from pruner_zero.models import LanguageModel, load_model, load_offloaded, save_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import ARCHITECTURES, tiny_model

INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def saved(
    folder: Path, architecture: str = "llama", shards: int = 1, *, zipped: bool = True
) -> str:
    """The fingerprint of a tiny model that is saved to `folder` with pickled weights."""
    model = LanguageModel(tiny_model(architecture), tiny_tokenizer(), "tiny")
    save_model(model, folder)
    (folder / "model.safetensors").unlink()
    state = model.model.state_dict()
    names = list(state)
    files = {f"pytorch_model-{n}.bin": names[n::shards] for n in range(shards)}
    if shards == 1:
        files = {"pytorch_model.bin": names}
    else:
        weight_map = {name: file for file, part in files.items() for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, part in files.items():
        part_state = {name: state[name] for name in part}
        torch.save(part_state, folder / file, _use_new_zipfile_serialization=zipped)
    return model.fingerprint()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_model_that_was_saved(architecture: str, tmp_path: Path) -> None:
    expected = saved(tmp_path / "model", architecture)
    loaded = load_model(f"pickled:{tmp_path / 'model'}")
    assert loaded.fingerprint() == expected
    assert loaded.name == f"pickled:{tmp_path / 'model'}"


@pytest.mark.parametrize(("shards", "zipped"), [(3, True), (1, False), (2, False)])
def test_shards_and_the_older_format_as_well(shards: int, zipped: bool, tmp_path: Path) -> None:
    expected = saved(tmp_path, shards=shards, zipped=zipped)
    assert load_model(f"pickled:{tmp_path}").fingerprint() == expected


def test_it_is_converted_once_and_again_when_a_file_changes(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "model"
    saved(source)
    for _ in range(2):
        load_model(f"pickled:{source}")
        assert len(list(cache.iterdir())) == 1
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert load_model(f"pickled:{source}").model.config.rms_norm_eps == 1e-4
    assert len(list(cache.iterdir())) == 2


def test_the_folder_itself_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    load_model(f"pickled:{tmp_path / 'model'}")
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}


@pytest.mark.parametrize("offload", [False, True])
def test_it_is_pruned_as_the_same_weights_in_safetensors(
    offload: bool, text_file: Path, tmp_path: Path
) -> None:
    saved(tmp_path / "pickled")
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    save_model(model, tmp_path / "plain")
    fingerprints = []
    for number, source in enumerate((tmp_path / "plain", f"pickled:{tmp_path / 'pickled'}")):
        output = tmp_path / f"out-{number}"
        prune(
            source,
            metric="wanda",
            sparsity=0.5,
            calibration=text_file,
            windows=2,
            seqlen=16,
            offload=offload,
            output=output,
        )
        fingerprints.append(load_model(output).fingerprint())
    assert fingerprints[0] == fingerprints[1] != model.fingerprint()


def garbled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")


def truncated(folder: Path) -> None:
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def a_whole_module(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")


def a_checkpoint_of_training(folder: Path) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({"state_dict": state, "step": 3}, folder / "pytorch_model.bin")


def gone(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()


def no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def a_garbled_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def a_shard_gone(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    weight_map = {"model.norm.weight": "pytorch_model-1.bin"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def an_index_that_points_outside(folder: Path) -> None:
    (folder / "pytorch_model.bin").rename(folder.parent / "elsewhere.bin")
    weight_map = {"model.norm.weight": "../elsewhere.bin"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (a_garbled_configuration, "cannot be loaded: "),
        (a_shard_gone, "cannot be loaded: "),
        (garbled, "is damaged"),
        (truncated, "is damaged"),
        (a_whole_module, "holds more than tensors, which is never run"),
        (a_checkpoint_of_training, "is not a model's state"),
        (gone, "has neither pytorch_model.bin nor a readable"),
        (no_configuration, "has no config.json"),
        (an_index_that_points_outside, "is no .bin file inside the folder"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_offloaded])
def test_each_fault_is_described_in_one_line(
    load: Callable[[str], object], damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    saved(folder)
    damage(folder)
    assert words in refusal(lambda: load(f"pickled:{folder}"))
    assert not list((tmp_path / "cache").rglob("*.partial-*"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pickled:", "the name of the model is empty"),
        ("pickled:./nowhere", "./nowhere does not exist"),
        ("pickled:builtin:smollm2-135m", "builtin:smollm2-135m is no local folder"),
    ],
)
def test_a_name_without_a_model_is_refused(name: str, words: str) -> None:
    assert words in refusal(lambda: load_model(name))


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 268436799 bytes: Cannot allocate memory (12)")

    saved(tmp_path)
    monkeypatch.setattr("torch.load", fail)
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        load_model(f"pickled:{tmp_path}")
