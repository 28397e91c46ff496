"""Input made to do harm: one line, soon; nothing is run, read elsewhere or piled up in memory."""

import json
import os
import pickle
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.metric.metric import Metric
from pruner_zero.models.reading import INDEX
from pruner_zero.pruning.prune import prune
from pruner_zero.tensor_file import TensorFile
from tests.conftest import save_tiny
from tests.faults.verbs import one_line, run
from tests.recovery.conftest import save_pruned
from tests.text.refusals import refusal

HALF = ["--sparsity", "0.5", "--windows", 2, "--seqlen", 16]
offloaded_or_not = pytest.mark.parametrize("how", [[], ["--offload"]], ids=["loaded", "offloaded"])
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _soon_and_small() -> Iterator[None]:
    """No refusal may take long or much memory."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - begun < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good model, to be made a bad one."""
    return save_tiny(tmp_path / "model")


@pytest.fixture
def refused(text_file: Path, tmp_path: Path) -> Refused:
    """The line that refuses to prune this model with these options, and leaves nothing."""

    def line(model: object, *options: object, text: object = text_file) -> str:
        places = ["-o", tmp_path / "out", "--cache", tmp_path / "cache"]
        told = one_line(run("prune", model, "--calibration", text, *HALF, *places, *options))
        assert not list(tmp_path.glob("out*"))
        return told

    return line


# What a model folder can hold.


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def pickled(path: Path, mark: Path, form: str) -> None:
    """What `torch.load` would run."""
    if form == "torch":
        torch.save(Payload(mark), path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))


def without_weights(folder: Path, **config: object) -> Path:
    """The folder as it was, but for its weights and these entries of its configuration."""
    (folder / "model.safetensors").unlink()
    return configured(folder, **config)


def configured(folder: Path, **config: object) -> Path:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return folder


PICKLES = "pickled weights, under any name that a model folder can give them"


@pytest.mark.fault(PICKLES, "refused in one line; nothing in them is run")
@offloaded_or_not
@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize(
    ("name", "index", "config"),
    [
        ("pytorch_model.bin", None, {}),
        ("model.safetensors", None, {}),
        ("adapter_model.bin", None, {"transformers_weights": "adapter_model.bin"}),
        ("weights.bin", INDEX, {}),
        ("pytorch_model-1.bin", "pytorch_model.bin.index.json", {}),
    ],
)
def test_pickles(
    name: str,
    index: str | None,
    config: dict[str, object],
    form: str,
    how: list[object],
    folder: Path,
    refused: Refused,
    tmp_path: Path,
) -> None:
    without_weights(folder, **config)
    pickled(folder / name, tmp_path / "run", form)
    if index:
        weight_map = {"weight_map": {"model.norm.weight": name}, "metadata": {}}
        (folder / index).write_text(json.dumps(weight_map))
    line = refused(folder, *how)
    assert str(folder) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(PICKLES, "refused in one line; nothing in them is run")
def test_a_pickle_beside_a_decoy(folder: Path, refused: Refused, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    configured(folder, transformers_weights="adapter_model.bin")
    pickled(folder / "adapter_model.bin", tmp_path / "run", "torch")
    assert "neither model.safetensors nor a readable" in refused(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(
    "a model folder that points outside itself: shard index, named weights, adapter",
    "refused in one line; what it points to is not read",
)
@offloaded_or_not
@pytest.mark.parametrize("trick", ["../secret.safetensors", "absolute", "sub/../../secret", 7, []])
def test_a_shard_index(trick: Any, how: list[object], folder: Path, refused: Refused) -> None:
    outside = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(outside)
    shutil.copy(outside, folder / "decoy.safetensors")
    named = str(outside) if trick == "absolute" else trick
    weights = dict.fromkeys(TensorFile(outside), named)
    (folder / INDEX).write_text(json.dumps({"weight_map": weights, "metadata": {}}))
    line = refused(folder, *how)
    assert "no .safetensors file inside the folder" in line or "a readable model" in line
    assert "save the model again" in line


@pytest.mark.fault(
    "a model folder that points outside itself: shard index, named weights, adapter",
    "refused in one line; what it points to is not read",
)
@offloaded_or_not
def test_an_adapter(how: list[object], folder: Path, refused: Refused, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    told = {"base_model_name_or_path": str(other), "peft_type": "LORA", "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    assert "holds an adapter (adapter_config.json): merge it" in refused(folder, *how)


@pytest.mark.fault(
    "a model folder that points outside itself: shard index, named weights, adapter",
    "refused in one line; what it points to is not read",
)
def test_named_weights(folder: Path, refused: Refused) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    configured(folder, transformers_weights="../secret.safetensors")
    assert "cannot be loaded" in refused(folder)


@pytest.mark.fault("a model, configuration or tokenizer with code of its own", "it is not run")
@offloaded_or_not
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code(
    file: str, how: list[object], folder: Path, text_file: Path, refused: Refused, tmp_path: Path
) -> None:
    mark = tmp_path / "run"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    told = json.loads((folder / file).read_text())
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    told["auto_map"] = dict.fromkeys(classes, "evil.Evil")
    # A type of its own, so that no class that is known can stand in.
    told |= {"model_type": "evil", "tokenizer_class": "EvilTokenizer"}
    (folder / file).write_text(json.dumps(told))
    places = ["-o", tmp_path / "out", "--cache", tmp_path / "cache"]
    outcome = run("prune", folder, "--calibration", text_file, *HALF, *places, *how)
    # The tokenizer's own file is enough to read it without any code.
    if outcome.code or file == "config.json":
        assert "cannot be loaded" in one_line(outcome)
    assert not mark.exists()


def header(text: str | bytes, data: bytes = b"\0" * 64) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(shape: str, offsets: str, dtype: str = "F32") -> str:
    return f'"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


LIES = {
    "longer than the file": b"\xff" * 8 + b"{}",
    "longest": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "deep": header("[" * 200_000),
    "deep object": header('{"a":' * 200_000),
    "huge shape": header("{" + entry(f"[{2**40},{2**40}]", "[0,64]") + "}"),
    "huge offsets": header("{" + entry("[16]", f"[0,{2**62}]") + "}"),
    "overflow": header("{" + entry(f"[{10**400}]", "[0,64]") + "}"),
    "huge digits": header("{" + entry("[" + "9" * 100_000 + "]", "[0,64]") + "}"),
    "negative": header("{" + entry("[-4,-4]", "[0,64]") + "}"),
    "negative start": header("{" + entry("[16]", "[-64,0]") + "}"),
    "backwards": header("{" + entry("[16]", "[64,0]") + "}"),
    "infinite": header("{" + entry("[Infinity]", "[0,64]") + "}"),
    "dtype": header("{" + entry("[16]", "[0,64]", "F4096") + "}"),
    "text": header("{" + entry('"16"', "[0,64]") + "}"),
    "not UTF-8": header(b'{"\xff\xfe":1}'),
    "one region many times": header(
        "{"
        + ",".join(
            f'"{number}":{{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
            for number in range(3000)
        )
        + "}",
        b"\0" * 4_000_000,
    ),
}
LYING = "a safetensors file with a lying header, or a bomb in its place"


@pytest.mark.fault(LYING, "refused in one line, with no memory spent on what it claims")
@offloaded_or_not
@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, how: list[object], folder: Path, refused: Refused) -> None:
    (folder / "model.safetensors").write_bytes(LIES[lie])
    line = refused(folder, *how)
    assert "damaged" in line or "cannot be loaded" in line or "lacks" in line
    assert str(folder) in line


@pytest.mark.fault(LYING, "refused in one line, with no memory spent on what it claims")
@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "one region many times"])
def test_lies_to_the_own_reader(lie: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(LIES[lie])
    assert "x is damaged" in refusal(lambda: TensorFile(tmp_path / "x"))


@pytest.mark.fault(LYING, "refused in one line, with no memory spent on what it claims")
@offloaded_or_not
def test_bombs(how: list[object], folder: Path, refused: Refused) -> None:
    weights = folder / "model.safetensors"
    with open(weights, "wb") as file:
        file.write((20 * 2**30).to_bytes(8, "little"))
        file.truncate(20 * 2**30 + 8)
    assert "damaged" in refused(folder, *how)
    assert "is damaged" in refusal(lambda: TensorFile(weights))
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 300_000_000)
    assert "damaged" in refused(folder, *how)


@pytest.mark.fault("JSON of a model folder that is nested without end", "refused in one line")
@offloaded_or_not
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000])
def test_deep_json(text: str, file: str, how: list[object], folder: Path, refused: Refused) -> None:
    (folder / file).write_text(text)
    assert str(folder) in refused(folder, *how)


@pytest.mark.fault("JSON of a model folder that is nested without end", "refused in one line")
@offloaded_or_not
def test_a_deep_index(how: list[object], folder: Path, refused: Refused) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / INDEX).write_text('{"weight_map":' * 200_000)
    assert "readable model.safetensors.index.json" in refused(folder, *how)


# What stands for a metric.

DEEP = {
    "tree": '{"data": "abs", "left": ' * 10_000 + '{"data": "W"}' + "}" * 10_000,
    "unclosed tree": '{"data": "abs", "left": ' * 10_000,
    "brackets": "[" * 10_000 + "]" * 10_000,
    "many nodes": None,
}


def bushy(levels: int) -> str:
    text = '{"data": "W"}'
    for _ in range(levels):
        text = f'{{"data": "add", "left": {text}, "right": {text}}}'
    return text


@pytest.mark.fault(
    "a tree 10,000 levels deep, of too many nodes, or with a path for a name",
    "refused in one line; no path in it is opened",
)
@pytest.mark.parametrize("kind", DEEP)
def test_trees(kind: str, llama_folder: Path, refused: Refused, tmp_path: Path) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(DEEP[kind] or bushy(15))
    line = refused(llama_folder, "--metric", tree)
    assert "tree.json" in line
    assert "deeper than 100 levels" in line or "nodes" in line or "invalid JSON" in line


@pytest.mark.fault(
    "a tree 10,000 levels deep, of too many nodes, or with a path for a name",
    "refused in one line; no path in it is opened",
)
@pytest.mark.parametrize("label", ["../../secret.json", "/dev/zero", "secret\n\x1b[2J", "secret"])
@pytest.mark.parametrize("place", ["data", "left", "scope"])
def test_paths_in_trees(
    label: str, place: str, llama_folder: Path, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "secret.json").write_text('{"data": "W"}')
    trees = {
        "data": {"data": label},
        "left": {"data": "abs", "left": {"data": label}},
        "scope": {"data": "W", "scope": label},
    }
    (tmp_path / "tree.json").write_text(json.dumps(trees[place]))
    line = refused(llama_folder, "--metric", tmp_path / "tree.json")
    assert "\x1b" not in line
    assert "secret" in line or "zero" in line


@pytest.mark.fault(
    "an expression of 100 MB: an argument, a setting, a tree file", "refused in one line, at once"
)
@pytest.mark.parametrize(
    "part", ["W+", "abs(", "-", "WX", " ", "1", "W@row+", "@a.json", "[{", "\n"]
)
def test_long_expressions(
    part: str, llama_folder: Path, text_file: Path, refused: Refused, tmp_path: Path
) -> None:
    text = part * (100_000_000 // len(part))
    for action in (
        lambda: Metric.of(text),
        lambda: prune(llama_folder, text, calibration=text_file, sparsity=0.5),
    ):
        assert len(refusal(action)) < 1000
    (tmp_path / "tree.json").write_text(text[:11_000_000])
    assert "larger than 10 MB" in refused(llama_folder, "--metric", tmp_path / "tree.json")


# Texts and settings.


def verbs_on(model: Path, pruned: Path, text: Path, tmp_path: Path) -> dict[str, list[object]]:
    """Every verb that reads a text."""
    out, cache = ["-o", tmp_path / "out"], ["--cache", tmp_path / "cache"]
    both = ["--calibration", text, "--search-text", text]
    return {
        "prune": ["prune", model, "--calibration", text, *HALF, *out, *cache],
        "search": ["search", model, *both, *HALF, "--evaluations", 4, *out, *cache],
        "recover": ["recover", pruned, "--text", text, "--seqlen", 16, "--steps", 1, *out],
        "evaluate": ["evaluate", model, "--text", text, "--seqlen", 16],
        "compare": ["compare", model, "--calibration", text, "--text", text, *HALF, *out, *cache],
    }


VERBS_ON = ["prune", "search", "recover", "evaluate", "compare"]
TEXTS = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n",
    "empty.jsonl": b"",
    "no documents.jsonl": b"\n\n",
    "empty documents.jsonl": b'{"text": ""}\n{"text": ""}\n',
    "mark.txt": b"\xef\xbb\xbf",
}
FOREIGN = {
    "latin1.txt": "Grüße ".encode("latin1") * 100,
    "utf16.txt": "words ".encode("utf-16") * 100,
    "torn.txt": "ü".encode()[:1],
    "latin1.jsonl": '{"text": "Grüße"}'.encode("latin1"),
    "nul.parquet": b"\0" * 100,
    "deep.jsonl": b'{"text": ' * 100_000,
    "long number.jsonl": b'{"text": "a", "n": ' + b"9" * 10_000 + b"}",
    "half a pair.jsonl": b'{"text": "\\ud800"}',
}


@pytest.mark.fault("a text of length zero, or of blanks alone", "refused in one line")
@pytest.mark.parametrize("verb", VERBS_ON)
@pytest.mark.parametrize("name", TEXTS)
def test_empty_texts(
    name: str, verb: str, llama_folder: Path, pruned_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / name
    text.write_bytes(TEXTS[name])
    line = one_line(run(*verbs_on(llama_folder, pruned_folder, text, tmp_path)[verb]))
    assert "is empty: choose a text with words in it" in line


@pytest.mark.fault(
    "a text that is not UTF-8, or JSON lines without end", "one line that tells the place"
)
@pytest.mark.parametrize("verb", VERBS_ON)
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_texts(
    name: str, verb: str, llama_folder: Path, pruned_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / name
    text.write_bytes(FOREIGN[name])
    line = one_line(run(*verbs_on(llama_folder, pruned_folder, text, tmp_path)[verb]))
    assert name in line


@pytest.mark.fault("a tokenizer with more tokens than the model embeds", "refused in one line")
@pytest.mark.parametrize("verb", VERBS_ON)
def test_a_tokenizer_of_another_model(verb: str, text_file: Path, tmp_path: Path) -> None:
    dense, pruned = save_tiny(tmp_path / "dense"), save_pruned(tmp_path / "pruned")
    for folder in (dense, pruned):
        shrink_embedding(folder, 50)
    line = one_line(run(*verbs_on(dense, pruned, text_file, tmp_path)[verb]))
    assert "use the tokenizer that belongs to the model" in line


def shrink_embedding(folder: Path, rows: int) -> None:
    """Let the model know only the first `rows` tokens."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    configured(folder, vocab_size=rows)


LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    + ["sparsity: *a11", "include: *a11"]
)
YAML = {
    "aliases that unfold without end": LAUGHS.replace("a0: &a0", "model: &a0").encode(),
    "an alias of itself": b"sparsity: &a [*a]\n",
    "brackets without end": b"sparsity: " + b"[" * 100_000,
    "an object to be made": b"sparsity: !!python/object/apply:os.mkdir [made]\n",
    "not UTF-8": "metric: Grüße\n".encode("latin1"),
    "a number without end": b"sparsity: " + b"9" * 100_000,
    "nul": b"\0",
}


@pytest.mark.fault("settings in YAML made to run code or fill the memory", "refused in one line")
@pytest.mark.parametrize("kind", YAML)
def test_yaml(kind: str, llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_bytes(YAML[kind])
    options = ["--config", config, "--calibration", text_file, "-o", tmp_path / "out"]
    one_line(run("prune", llama_folder, *options))
    assert not Path("made").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("a run folder whose run.json is garbage", "refused in one line")
@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "[]", '{"settings": 3}', '{"settings": {}}', "\udcff", "{}"]
)
def test_a_garbled_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    line = one_line(run("search", "--resume", tmp_path))
    assert "holds no run to resume" in line or "is missing" in line
