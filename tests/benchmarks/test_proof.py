"""Cells of the proof: last words of passages, models in bfloat16, folders that are there."""

import argparse
import json
import random
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pruner_zero import prune
from pruner_zero.choices import Dtype
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.predictions import compare_predictions
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model, tiny_windows

Load = Callable[[str], ModuleType]
TEXTS = ("first", "second")


@pytest.fixture
def proof(load_benchmark: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """proof.py with few passages, its cells in a folder of the test."""
    module = load_benchmark("proof")
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(module, "PASSAGES", 5)
    return module


@pytest.fixture
def given(llama_folder: Path, text_file: Path) -> argparse.Namespace:
    """The command line for two texts, without tasks and windows that the model writes."""
    return argparse.Namespace(
        model="tiny",
        source=str(llama_folder),
        calibration=str(text_file),
        windows=1,
        texts=[f"{name}={text_file}" for name in TEXTS],
        windows_eval=1,
        tasks=None,
        items=None,
        no_written=True,
        pruned=[],
        only=["dense", "50-wanda"],
        dtype="auto",
    )


def test_passages_end_with_whole_words_that_differ(load_benchmark: Load) -> None:
    generator = random.Random(1)
    kinds = ("word", "two words", "of", "x1y", "it's", "end.", "line\n", "double ", "été")
    text = " ".join(generator.choice(kinds) for _ in range(1500))
    tables = load_benchmark("tables")
    passages = tables.passages(text, 20, random.Random(0))
    assert passages == tables.passages(text, 20, random.Random(0))
    assert len(passages) == 20
    ends = []
    for passage in passages:
        assert 64 <= len(passage.split()) <= 128
        assert re.search(r"\S (word|two|words|end|line|double|été)$", passage)
        (found,) = re.finditer(re.escape(passage) + r"(?=\s|$)", text)
        ends.append(found.end())
    assert len(set(ends)) == 20
    with pytest.raises(PrunerZeroError, match=r"passages and not 100"):
        tables.passages(text, 100, random.Random(0))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_nats_of_last_words_are_those_of_a_plain_computation(
    architecture: str, load_benchmark: Load
) -> None:
    model = LanguageModel(tiny_model(architecture), tiny_tokenizer(), "tiny")
    texts = ["the quick brown fox", "jumps over the lazy dog"]
    measured = load_benchmark("tables").cloze(model, texts)
    nats = []
    for text in texts:
        # A token a byte after the start of the text.
        tokens = [0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]]
        word = len(" " + text.split()[-1])
        logits = model.model(torch.tensor([tokens])).logits[0].detach()
        probabilities = logits.double().softmax(-1)
        last = range(len(tokens) - word, len(tokens))
        nats.append(-sum(float(probabilities[n - 1, tokens[n]].log()) for n in last))
    assert measured["nats"] == pytest.approx(nats, abs=2e-5)
    assert measured["right"] == [0, 0]


def test_a_difference_of_last_words_is_paired_by_passage(load_benchmark: Load) -> None:
    tables = load_benchmark("tables")
    base = {"first": [1.0, 9.0, 4.0], "second": [2.0, 3.0]}
    higher = {name: [value + 0.5 for value in values] for name, values in base.items()}
    assert tables.difference(higher, base) == pytest.approx((0.5, 0.0))
    mean, half = tables.spread(base)
    assert mean == pytest.approx((14 / 3 + 2.5) / 2)
    # The variances of the two means are 49/3/3 and 0.5/2.
    assert half == pytest.approx(1.96 * (49 / 9 + 0.25) ** 0.5 / 2, rel=1e-3)


def filled(proof: ModuleType, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The cells of the command line `given`, by name, after it has run."""
    proof.fill_cells(given)
    files = {name: folder / "cells" / "tiny" / f"{name}.json" for name in given.only}
    return {name: json.loads(file.read_text()) for name, file in files.items()}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_cell_of_a_model_in_either_dtype_is_filled(
    dtype: Dtype,
    load_benchmark: Load,
    proof: ModuleType,
    given: argparse.Namespace,
    tmp_path: Path,
    prose: str,
) -> None:
    given.dtype = dtype
    rows = filled(proof, given, tmp_path)
    stored = "float32" if dtype == "auto" else dtype
    assert [row["dtype"] for row in rows.values()] == [stored, stored]
    model, dense = (load_model(given.source, dtype) for _ in range(2))
    prune(model, "wanda", sparsity=0.5, calibration=given.calibration, windows=1)
    window = torch.tensor(tiny_tokenizer()(prose, add_special_tokens=False)["input_ids"])[:1024]
    narrow = load_benchmark("tables").blocks_in_bfloat16
    with narrow(model.model), narrow(dense.model):
        expected = compare_predictions(model.model, dense.model, window[None])
    for name in TEXTS:
        assert rows["dense"]["texts"][name]["divergences"] == [0.0]
        assert rows["50-wanda"]["texts"][name]["divergences"] == [round(expected.nats[0], 5)]
        assert rows["50-wanda"]["texts"][name]["agreements"] == [round(expected.agreed[0], 5)]
        passages = [row["cloze"][name] for row in rows.values()]
        assert passages[0]["passages_sha256"] == passages[1]["passages_sha256"]
        assert passages[0]["nats"] != passages[1]["nats"]
    assert [len(rows["dense"]["cloze"][name]["nats"]) for name in TEXTS] == [3, 2]


def test_a_folder_that_is_there_is_measured_and_a_cell_that_is_there_kept(
    proof: ModuleType, given: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled(proof, given, tmp_path)
    folder, same = tmp_path / "pruned", {"sparsity": 0.5, "calibration": given.calibration}
    prune(given.source, "wanda", windows=1, output=folder, **same)
    monkeypatch.setattr(proof, "prune", None)
    given.pruned, given.only = [f"50-mine={folder}"], [*given.only, "50-mine"]
    again = filled(proof, given, tmp_path)
    mine = again.pop("50-mine")
    assert again == rows
    assert (mine["label"], mine["cloze"]) == ("mine", rows["50-wanda"]["cloze"])


def test_the_table_has_what_was_measured_and_differences_from_wanda(
    proof: ModuleType, given: argparse.Namespace, tmp_path: Path
) -> None:
    dense, wanda = filled(proof, given, tmp_path).values()
    answers = {"documents": 2, "probabilities": [0.4, 0.6]}
    tasks = dict.fromkeys(proof.TASKS, answers)
    better = {task: {**answers, "probabilities": [0.5, 0.7]} for task in proof.TASKS}
    # Tokens without bits have those of the same tokens elsewhere.
    texts = wanda["texts"].values()
    bits = {text["tokens_sha256"]: 0.5 for text in texts}
    shown = proof.cells_of({**wanda, "tasks": better}, bits, {**wanda, "tasks": tasks})
    losses = [sum(text["losses"]) / len(text["losses"]) for text in texts]
    assert shown[3] == f"{sum(losses) / len(losses) / 2:.3f}"
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", shown[5])
    assert shown[6:9] == ["", "0.4", "+10.0 ± 0.0"]
    older = {key: value for key, value in dense.items() if key != "cloze"}
    assert proof.cells_of(older, {}, None)[3:] == ["", "0.000", "", "", "", "", ""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2"])
def test_blocks_are_in_bfloat16_and_logits_in_float32(
    architecture: str, dtype: torch.dtype, load_benchmark: Load
) -> None:
    blocks_in_bfloat16 = load_benchmark("tables").blocks_in_bfloat16
    model, windows, hidden = tiny_model(architecture).to(dtype), tiny_windows(), []
    exact = deepcopy(model).float()
    head = model.get_output_embeddings()
    with torch.no_grad(), blocks_in_bfloat16(model):
        with head.register_forward_pre_hook(lambda _module, args: hidden.append(args[0])):
            logits = model(windows).logits
        with blocks_in_bfloat16(model):
            again = model(windows).logits
    assert logits.dtype == torch.float32
    projected = hidden[0].float() @ head.weight.float().T
    if architecture != "gemma2":  # which caps its logits
        torch.testing.assert_close(logits, projected)
    torch.testing.assert_close(logits, again)
    wanted = exact(windows).logits
    assert 0 < (logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert "forward" not in vars(head)
    assert model(windows).logits.dtype == dtype
