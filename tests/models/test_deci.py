"""Blocks of different sizes in a GGUF file, which llama.cpp runs, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pruner_zero.models.block_sizes import block_sizes, set_block_sizes
from pruner_zero.models.deci import GGUF_FAMILY
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_source import read_source
from pruner_zero.models.load import installed_file, load_model
from pruner_zero.pruning.prune import prune
from pruner_zero.recovery.recover import recover
from pruner_zero.result_folder import GGUF_PRUNING
from tests.benchmarks.conftest import load_benchmark
from tests.models.different_blocks import KEPT, cut_blocks
from tests.models.gguf_file import write_gguf
from tests.models.test_gguf_file import dense_model, fields, tokenizer_of
from tests.structure.test_tokens import TEXT
from tests.text.refusals import refusal

__all__ = ["load_benchmark"]

# All query heads stay where they have biases.
CUTS = {"llama": KEPT, "qwen2": tuple((channels, 2) for channels, _ in KEPT)}
each_family = pytest.mark.parametrize("family", CUTS)


def write_dense(family: str, path: Path) -> Path:
    tokenizer = tokenizer_of(family)
    write_gguf(dense_model(family, len(tokenizer), blocks=3), path, tokenizer)
    return path


def write_cut(dense: Path, path: Path, cut: Any, stay: tuple[int, ...] = ()) -> Any:
    """The model in memory whose rounded weights are in the file `path`."""
    loaded = load_model(dense)
    source = read_source(dense, dense.name, loaded.model)
    cut_blocks(loaded.model, cut)
    if stay:
        rows = loaded.model.get_input_embeddings().weight.data[list(stay)]
        loaded.model.resize_token_embeddings(len(stay))
        loaded.model.get_input_embeddings().weight.data = rows
    save_gguf(source, loaded.model, path, "F16", stay, {GGUF_PRUNING: {}})
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.half())
    return loaded


@each_family
def test_the_file_is_the_model_rounded(family: str, tmp_path: Path) -> None:
    """With the tokenizer, and the sizes of each block; also where tokens are gone too."""
    dense, path = write_dense(family, tmp_path / "dense.gguf"), tmp_path / "cut.gguf"
    stay = tuple(range(0, len(tokenizer_of(family)), 2))
    fewer = write_cut(dense, path, CUTS[family], stay)
    loaded, tokens = load_model(path), torch.tensor([[1, 5, 9, 2]])
    assert loaded.model.config.vocab_size == len(stay)
    assert torch.equal(loaded.model(tokens).logits, fewer.model(tokens).logits)
    expected = write_cut(dense, path, CUTS[family])
    loaded = load_model(path)
    tokens = expected.tokenizer("the quick fox prunes zeros", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded.model(tokens).logits, expected.model(tokens).logits)
    written = [
        each.model.generate(tokens, max_new_tokens=4, do_sample=False)
        for each in (loaded, expected)
    ]
    assert torch.equal(*written)
    assert loaded.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert [loaded.tokenizer(text) for text in TEXT] == [expected.tokenizer(t) for t in TEXT]
    assert block_sizes(loaded.model.config) == block_sizes(expected.model.config)
    assert load_model(path, "bfloat16").model.dtype == torch.bfloat16


@each_family
def test_its_metadata_is_that_of_the_dense_file_but_for_the_sizes(
    family: str, tmp_path: Path
) -> None:
    dense, path = write_dense(family, tmp_path / "dense.gguf"), tmp_path / "cut.gguf"
    write_cut(dense, path, CUTS[family])
    before, after = fields(dense), fields(path)
    assert after["general.architecture"] == "deci"
    assert after["deci.feed_forward_length"] == [channels for channels, _ in CUTS[family]]
    assert after["deci.attention.head_count"] == [2 * heads for _, heads in CUTS[family]]
    assert after["deci.attention.head_count_kv"] == [heads for _, heads in CUTS[family]]
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        assert after[f"deci.{key}"] == 8
    moved = {key.replace(f"{family}.", "deci."): value for key, value in before.items()}
    same = {key for key in moved if moved[key] == after[key]}
    changed = {key for key in moved if not key.startswith("GGUF.")} - same
    sizes = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
    assert changed == {"general.architecture", *(f"deci.{key}" for key in sizes)}
    assert not any(key.startswith(f"{family}.") for key in after)


def test_queries_and_keys_are_in_the_order_of_llama_cpp_with_their_biases(tmp_path: Path) -> None:
    """The two halves of each rotary pair are next to each other; a file of qwen2 has them apart."""
    dense, path = write_dense("qwen2", tmp_path / "dense.gguf"), tmp_path / "cut.gguf"
    write_cut(dense, path, CUTS["qwen2"])
    apart = {each.name: each.data for each in gguf.GGUFReader(dense).tensors}
    paired = {each.name: each.data for each in gguf.GGUFReader(path).tensors}
    places = [8 * head + pair + half for head in range(4) for pair in range(4) for half in (0, 4)]
    for name in ("blk.1.attn_q.bias", "blk.1.attn_q.weight"):
        assert np.array_equal(paired[name], apart[name][places].astype(paired[name].dtype))
    for name in ("blk.1.attn_k.bias", "blk.1.attn_k.weight"):
        assert np.array_equal(paired[name], apart[name][places[:16]].astype(paired[name].dtype))
    name = "blk.1.attn_v.weight"
    assert np.array_equal(paired[name], apart[name].astype(np.float16))


@each_family
def test_such_a_file_is_pruned_and_recovered_to_a_file(family: str, tmp_path: Path) -> None:
    dense, path = write_dense(family, tmp_path / "dense.gguf"), tmp_path / "cut.gguf"
    write_cut(dense, path, CUTS[family])
    zeros, trained = tmp_path / "zeros.gguf", tmp_path / "trained.gguf"
    prune(path, "magnitude", sparsity=0.5, output=zeros)
    recover(zeros, text=TEXT, seqlen=16, steps=2, output=trained)
    sizes = block_sizes(load_model(path).model.config)
    for file in (zeros, trained):
        assert fields(file)["general.architecture"] == "deci"
        assert json.loads(fields(file)[GGUF_FAMILY]) == family
        assert block_sizes(load_model(file).model.config) == sizes
    # The third block is larger than the second, in whose place it comes.
    prune(
        path,
        structure="blocks",
        sparsity=0.34,
        calibration=TEXT,
        windows=2,
        seqlen=16,
        output=tmp_path / "blocks.gguf",
    )
    left = block_sizes(load_model(tmp_path / "blocks.gguf").model.config)
    assert len(left) == 2
    assert all(size in sizes for size in left)
    # Blocks of equal sizes stay in such a file.
    loaded = load_model(path)
    source = read_source(path, "cut", loaded.model)
    cut_blocks(loaded.model, [(32, CUTS[family][1][1])] * 3)
    assert not loaded.model.config.is_heterogeneous
    save_gguf(source, loaded.model, tmp_path / "equal.gguf", "F16", (), {GGUF_PRUNING: {}})
    assert fields(tmp_path / "equal.gguf")["deci.feed_forward_length"] == [32] * 3
    equal, tokens = load_model(tmp_path / "equal.gguf").model, torch.tensor([[1, 5, 9, 2]])
    assert not equal.config.is_heterogeneous
    assert torch.allclose(equal(tokens).logits, loaded.model(tokens).logits, atol=0.01)


@pytest.mark.parametrize(
    ("family", "cut", "words"),
    [
        ("gemma3", KEPT, "is a gemma3, and in its GGUF files all blocks have equal sizes: write"),
        ("qwen2", KEPT, "has biases of queries, and runtimes of its GGUF files need all heads"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(
    family: str, cut: Any, words: str, tmp_path: Path
) -> None:
    dense = write_dense(family, tmp_path / "dense.gguf")
    assert words in refusal(lambda: write_cut(dense, tmp_path / "cut.gguf", cut))
    assert [each.name for each in tmp_path.iterdir()] == ["dense.gguf"]


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "deci")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message = refusal(lambda: load_model(tmp_path / "other.gguf"))
    assert "other.gguf is a deci file that this program did not write" in message


@pytest.mark.slow
def test_llama_cpp_runs_such_files_as_transformers_does(
    load_benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """A `deci` file of the dense weights continues a text as the `llama` file of them does."""
    ask, prompt = load_benchmark("speed").ask, "The capital of France is"
    path, files = installed_file("builtin:smollm2-135m"), [tmp_path / "deci", tmp_path / "llama"]
    loaded = load_model(path)
    source, sizes = read_source(path, "dense", loaded.model), block_sizes(loaded.model.config)
    # One block differs in the configuration alone, until its size is equal again.
    set_block_sizes(loaded.model.config, [{"intermediate_size": 32}, *sizes[1:]])
    loaded.model.config.per_layer_config = {}
    save_gguf(source, loaded.model, files[0], "F16", (), {})
    set_block_sizes(loaded.model.config, sizes)
    save_gguf(source, loaded.model, files[1], "F16", (), {})
    assert [fields(file)["general.architecture"] for file in files] == ["deci", "llama"]
    answers = [ask(file, prompt, 24)["text"] for file in files]
    assert answers[0] == answers[1]
    cut_blocks(loaded.model, [(1536 - 32 * (i % 6), 2 if i in (7, 20) else 3) for i in range(30)])
    save_gguf(source, loaded.model, tmp_path / "cut", "F16", (), {})
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.half())
    tokens = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    ends = loaded.model.generate(tokens, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    written = loaded.tokenizer.decode(ends[0, tokens.shape[1] :])
    assert ask(tmp_path / "cut", prompt, 24)["text"] == written
