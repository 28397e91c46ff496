"""A pruned GGUF file is the model in the pruned folder, rounded, and keeps the metadata."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import gguf_source, load
from pruner_zero.models.block_sizes import causal_class, set_block_sizes
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_header import GgufTensor
from pruner_zero.models.gguf_source import read_source
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.progress import reported_to
from pruner_zero.pruning.planning import plan_recipe, read_recipe
from pruner_zero.pruning.prune import prune
from pruner_zero.recovery.recover import recover
from pruner_zero.result_folder import GGUF_PRUNING, GGUF_RECOVERY
from pruner_zero.structure.units import CoupledUnits
from tests.benchmarks.conftest import load_benchmark
from tests.cli.conftest import Cli, cli, tree
from tests.full_disk import full_disk
from tests.models.gguf_file import write_gguf
from tests.structure.test_tokens import TEXT, byte_fallback, byte_level, wrapped
from tests.text.refusals import refusal
from tests.tiny import Notes
from tests.tiny_models import tiny_model

__all__ = ["cli", "load_benchmark"]

RUNS: dict[str, dict[str, Any]] = {
    "zeros": {"metric": "magnitude", "sparsity": 0.5},
    "channels": {"structure": "channels", "metric": "wanda", "sparsity": 1 / 3},
    "heads": {"structure": "heads", "metric": "wanda", "sparsity": 0.5},
    "blocks": {"structure": "blocks", "sparsity": 0.25},
    "vocabulary": {"structure": "vocabulary", "sparsity": 0.2},
}
# Keys that pruning changes.
CHANGED = {
    "zeros": set[str](),
    "channels": {"feed_forward_length"},
    "heads": {"attention.head_count", "attention.head_count_kv"},
    "blocks": {"block_count"},
    "vocabulary": {"vocab_size"},
}


def tokenizer_of(architecture: str) -> Any:
    """With the tokens that transformers adds where a file of the architecture lacks them."""
    if architecture != "gemma3":
        spec = byte_level().backend_tokenizer.to_str().replace("<end>", "<|endoftext|>")
        return wrapped(Tokenizer.from_str(spec))
    spec = byte_fallback().backend_tokenizer.to_str().replace("<s>", "<bos>")
    tokenizer = wrapped(Tokenizer.from_str(spec), "<bos>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pad>", "<mask>", "<eos>"]})
    return tokenizer


def dense_model(architecture: str, rows: int, blocks: int = 4) -> PreTrainedModel:
    config = tiny_model(architecture, blocks=blocks).config
    config.vocab_size, config.eos_token_id = rows, rows - 1
    config.bos_token_id = 1 if architecture == "gemma3" else 0
    if architecture == "qwen2":
        config.use_sliding_window, config.sliding_window = False, None
        config.layer_types = ["full_attention"] * blocks
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms that are not one.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The GGUF file of a tiny model of an architecture."""
    folder = tmp_path_factory.mktemp("dense")

    def written(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            tokenizer = tokenizer_of(architecture)
            write_gguf(dense_model(architecture, len(tokenizer)), path, tokenizer)
        return path

    return written


def pruned(source: Path, run: str, output: Path, **settings: Any) -> LanguageModel:
    text = {} if run == "zeros" else {"calibration": TEXT, "windows": 2, "seqlen": 16}
    return prune(source, output=output, **{**RUNS[run], **text, **settings}).language_model


def loaded(path: Path) -> tuple[PreTrainedModel, Any]:
    """The model and the tokenizer that plain transformers reads."""
    folder, options = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **options)


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("run", RUNS)
def test_the_file_is_the_folder_of_the_same_command_rounded(
    run: str, architecture: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    if (run, architecture) == ("heads", "qwen2"):
        pytest.skip("transformers does not read the width of a head of a qwen2 file")
    pruned(source(architecture), run, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    model, tokenizer = loaded(tmp_path / "out.gguf")
    # transformers gives a folder of qwen2 another pre-tokenizer than the file.
    other = pruned(source(architecture), run, tmp_path / "out").tokenizer
    expected, _ = loaded(tmp_path / "out")
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.half())
        tokens = other("the quick fox prunes zeros", return_tensors="pt")["input_ids"]
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
    assert tokenizer.get_vocab() == other.get_vocab()
    for text in TEXT:
        assert tokenizer(text) == other(text)


@pytest.mark.parametrize("run", RUNS)
def test_metadata_stays_but_for_the_sizes(
    run: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    pruned(source("llama"), run, tmp_path / "out.gguf")
    before, after = fields(source("llama")), fields(tmp_path / "out.gguf")
    changed = {key.removeprefix("llama.") for key in before if after[key] != before[key]}
    tokens = {key for key in changed if key.startswith(("GGUF.", "tokenizer.ggml."))}
    assert changed - tokens == CHANGED[run]
    if run == "heads":
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            assert after[f"llama.{key}"] == 8
    assert after["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert json.loads(after[GGUF_PRUNING])["settings"]["model"] == str(source("llama"))
    for key in ("tokens", "scores", "token_type"):
        assert len(after[f"tokenizer.ggml.{key}"]) == after["llama.vocab_size"]
    end = after["tokenizer.ggml.eos_token_id"]
    assert after["tokenizer.ggml.tokens"][end] == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0"])
def test_matrices_have_the_type_that_is_asked_for(
    kind: Any, source: Callable[[str], Path], tmp_path: Path
) -> None:
    """But for those whose rows are no whole blocks of it; zeros stay zeros."""
    file = tmp_path / "out.gguf"
    pruned(source("llama"), "zeros", file, gguf_type=kind)
    types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == kind
    assert types["blk.1.ffn_down.weight"] == (kind if kind == "BF16" else "F16")
    assert types["blk.1.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    dense, _ = loaded(source("llama"))
    for name, tensor in loaded(file)[0].state_dict().items():
        if tensor.ndim == 2 and "layers" in name:
            assert (tensor == 0).float().mean() >= 0.5
        else:
            difference = (tensor - dense.state_dict()[name]).norm() / tensor.norm()
            assert difference < {"BF16": 0.01, "Q8_0": 0.02, "Q4_0": 0.2}[kind]


@pytest.mark.parametrize("run", ["zeros", "vocabulary"])
def test_a_pruned_file_can_be_recovered_to_a_file(
    run: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    small, file, folder = tmp_path / "small.gguf", tmp_path / "out.gguf", tmp_path / "out"
    pruned(source("llama"), run, small)
    for output in (file, folder):
        settings: dict[str, Any] = {"text": TEXT, "seqlen": 16, "steps": 8}
        recover(small, output=output, teacher=source("llama"), **settings)
    (model, tokenizer), (expected, _) = loaded(file), loaded(folder)
    trained = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[trained], loaded(small)[0].state_dict()[trained])
    for name, tensor in expected.state_dict().items():
        rounded = tensor.half().float() if tensor.ndim == 2 else tensor
        assert torch.equal(model.state_dict()[name], rounded)
    assert tokenizer.get_vocab() == loaded(small)[1].get_vocab()
    after = fields(file)
    assert after[GGUF_PRUNING] == fields(small)[GGUF_PRUNING]
    recovery = json.loads((folder / "recovery.json").read_text())
    assert json.loads(after[GGUF_RECOVERY])["curve"] == recovery["curve"]
    # `--overwrite` knows the file as its own.
    recover(small, output=file, teacher=source("llama"), overwrite=True, **settings)
    # What a new pruning changes was not recovered.
    pruned(file, "channels", tmp_path / "again.gguf")
    assert GGUF_RECOVERY not in fields(tmp_path / "again.gguf")


def test_the_built_in_model_is_a_gguf_file(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (load, gguf_source):
        monkeypatch.setattr(module, "installed_file", lambda _: source("llama"))
    # The case of the suffix does not matter.
    pruned(source("llama"), "zeros", tmp_path / "given.GGUF")
    prune("builtin:smollm2-135m", output=tmp_path / "out.gguf", **RUNS["zeros"])
    left, right = (gguf.GGUFReader(tmp_path / name) for name in ("given.GGUF", "out.gguf"))
    for one, other in zip(left.tensors, right.tensors, strict=True):
        assert np.array_equal(one.data, other.data)


def test_a_file_has_no_ban_of_scripts(source: Callable[[str], Path], tmp_path: Path) -> None:
    notes = Notes()
    with reported_to(notes):
        pruned(source("llama"), "vocabulary", tmp_path / "out.gguf", scripts="Latin")
        assert any("a .gguf file cannot ban tokens" in note for note in notes.lines)
        notes.lines.clear()
        pruned(source("llama"), "vocabulary", tmp_path / "out", scripts="Latin")
    assert not any("cannot ban" in note for note in notes.lines)


def test_frequencies_of_positions_are_copied(tmp_path: Path) -> None:
    tokenizer, scale = tokenizer_of("llama"), np.linspace(1, 8, 4, dtype=np.float32)
    path = tmp_path / "dense.gguf"
    write_gguf(dense_model("llama", len(tokenizer)), path, tokenizer, rope_freqs__weight=scale)
    pruned(path, "zeros", tmp_path / "out.gguf")
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    [copied] = [each.data for each in tensors if each.name == "rope_freqs.weight"]
    assert np.array_equal(copied, scale)


def test_a_tensor_that_is_not_read_is_refused(tmp_path: Path) -> None:
    tokenizer, extra = tokenizer_of("llama"), {"blk__0__attn_extra__weight": np.ones(4, np.float32)}
    path = tmp_path / "dense.gguf"
    write_gguf(dense_model("llama", len(tokenizer)), path, tokenizer, **extra)
    with pytest.raises(PrunerZeroError, match=r"blk\.0\.attn_extra\.weight of .* is not read"):
        pruned(path, "zeros", tmp_path / "out.gguf")
    assert [each.name for each in tmp_path.iterdir()] == ["dense.gguf"]


def test_an_architecture_whose_tensors_are_changed_in_an_unknown_way_is_refused(
    source: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_source, "_INVERSES", {})
    message = refusal(lambda: pruned(source("llama"), "zeros", tmp_path / "out.gguf"))
    assert "is a llama, which cannot be written as a GGUF file: write a folder and" in message
    assert "convert_hf_to_gguf.py" in message


def test_blocks_whose_kinds_follow_from_their_numbers_stay(tmp_path: Path) -> None:
    """The sixth block of Gemma 3 has another kind of attention."""
    tokenizer, path = tokenizer_of("gemma3"), tmp_path / "dense.gguf"
    write_gguf(dense_model("gemma3", len(tokenizer), blocks=6), path, tokenizer)
    message = refusal(lambda: pruned(path, "blocks", tmp_path / "out.gguf"))
    assert "choose another --structure than blocks, or write a folder" in message


@pytest.mark.parametrize(
    ("rows", "inner", "words"),
    [(0, 8, r"ffn_gate\.weight of .* has the shape"), (-1, 0, "tokens, and the model embeds")],
)
def test_a_model_that_does_not_fit_is_not_written(
    rows: int, inner: int, words: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    path = source("llama")
    model, _ = loaded(path)
    read = read_source(path, path.name, model, None)
    model.config.intermediate_size += inner
    model.config.vocab_size += rows
    other = type(model)(model.config)
    with pytest.raises(PrunerZeroError, match=words):
        save_gguf(read, other, tmp_path / "out.gguf", "F16", (), {})
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_the_file_has_no_place_for_is_refused(source: Callable[[str], Path]) -> None:
    model, _ = loaded(source("llama"))
    model.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(48))
    with pytest.raises(PrunerZeroError, match=r"no place for model\.layers\.0\.mlp\.up_proj\.bias"):
        read_source(source("llama"), "tiny", model, None)


@pytest.mark.parametrize(
    ("kind", "widths", "multiple"),
    [
        ("Q4_K", (512, 512), 256),
        ("Q6_K", (512, 768), 256),
        ("Q4_K", (512, 288), 32),
        ("Q8_0", (512, 512), 32),
        ("F16", (512, 512), 32),
    ],
)
def test_channels_stay_in_whole_blocks_of_k_quants_where_the_dense_model_has_them(
    kind: str, widths: tuple[int, ...], multiple: int, source: Callable[[str], Path]
) -> None:
    """Also in the plan of a run that writes a file, and not in that of another output."""
    loaded = load_model(source("llama"))
    tokenizer, config = loaded.tokenizer, tiny_model("llama").config
    set_block_sizes(config, [{"intermediate_size": width} for width in widths])
    model = causal_class(config)(config)
    read = read_source(source("llama"), "tiny", loaded.model)
    tensor = GgufTensor((256, 512), gguf.GGMLQuantizationType[kind], 0)
    file = replace(read, header=replace(read.header, tensors={"blk.0.ffn_down.weight": tensor}))
    assert file.multiple(config) == multiple
    options = {"model": "tiny", "structure": "channels", "sparsity": 0.5}
    settings, recipe, completed = read_recipe("tiny", None, TEXT, None, options)
    for output, expected in ((file, multiple), (None, 32)):
        cut = plan_recipe(
            settings, recipe, completed, LanguageModel(model, tokenizer, "tiny"), output
        ).cut
        assert isinstance(cut, CoupledUnits)
        assert cut.multiple == expected


def test_a_full_disk_is_one_line(source: Callable[[str], Path], tmp_path: Path) -> None:
    model, _ = loaded(source("llama"))
    read = read_source(source("llama"), "tiny", model, None)
    write = partial(save_gguf, read, model, tmp_path / "out.gguf", "F16", (), {})
    for room in (100, 30_000):
        with full_disk(room):
            assert "cannot be written (no space left, free some disk)" in refusal(write)


@pytest.mark.slow
def test_llama_cpp_continues_a_text_as_transformers_does(
    load_benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "calibration": "builtin:pydoc",
        "windows": 100,
        "seqlen": 256,
        "sparsity": 0.5,
    }
    for name in ("out", "out.gguf"):
        prune("builtin:smollm2-135m", output=tmp_path / name, structure="vocabulary", **settings)
    model, tokenizer = loaded(tmp_path / "out")
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    ends = model.generate(tokens, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    answer = load_benchmark("speed").ask(tmp_path / "out.gguf", "The capital of France is", 24)
    assert answer["text"] == tokenizer.decode(ends[0, tokens.shape[1] :])


MAGNITUDE = ("--metric", "magnitude", "--sparsity", 0.5)


def test_other_models_and_other_outputs_are_refused_before_any_work(
    cli: Cli, llama_folder: Path, source: Callable[[str], Path], tmp_path: Path
) -> None:
    file, folder, path = tmp_path / "out.gguf", tmp_path / "out", source("llama")
    of_file = ("prune", path, *MAGNITUDE)
    line = cli("prune", llama_folder, *MAGNITUDE, "-o", file).error
    assert line.endswith("write a folder and convert it with convert_hf_to_gguf.py of llama.cpp")
    line = cli(*of_file, "-o", folder, "--gguf-type", "Q8_0").error
    assert line == "--gguf-type is for an output whose name ends in .gguf: leave it out"
    assert "Q4_0" in cli(*of_file, "-o", file, "--gguf-type", "q2").error
    line = cli("prune", "builtin:smollm2-135m", "--offload", *MAGNITUDE, "-o", file).error
    assert line == "--offload cannot be combined with a .gguf output: write a folder"
    line = cli("recover", llama_folder, "--text", path, "--steps", 1, "-o", file).error
    assert line.startswith(f"a .gguf output is made after a .gguf file, and {llama_folder} is none")
    model, tokenizer = loaded(path)
    with pytest.raises(PrunerZeroError, match="a model object cannot be combined"):
        prune(model, tokenizer=tokenizer, output=file, **RUNS["zeros"])
    assert not tree(tmp_path)


def test_an_existing_file_is_replaced_only_where_it_is_a_pruned_one(
    cli: Cli, source: Callable[[str], Path], tmp_path: Path
) -> None:
    dense, file = tmp_path / "dense.gguf", tmp_path / "out.gguf"
    dense.write_bytes(source("llama").read_bytes())
    command = ("prune", dense, *MAGNITUDE, "-o")
    assert cli(*command, file).code == 0
    before = file.read_bytes()
    assert cli(*command, file).error == (f"{file} exists: choose another file, or add --overwrite")
    assert cli(*command, file, "--overwrite", "--gguf-type", "BF16").code == 0
    assert file.read_bytes() != before
    assert "which this command reads" in cli(*command, dense, "--overwrite").error
    other = tmp_path / "other.gguf"
    other.write_bytes(dense.read_bytes())
    assert f"{other} was not written by this program" in cli(*command, other, "--overwrite").error
    assert sorted(tree(tmp_path)) == ["dense.gguf", "other.gguf", "out.gguf"]
    assert other.read_bytes() == dense.read_bytes() == source("llama").read_bytes()
