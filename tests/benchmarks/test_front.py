"""The front: bits per byte of files of several types, the same text for every tokenizer."""

import json
import math
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.corpus import Corpus
from tests.models.gguf_file import write_gguf
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.fixture
def front(
    load_benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """front.py with short pieces, its files in a folder of the test."""
    module, tables = load_benchmark("front"), load_benchmark("tables")
    monkeypatch.setattr(module, "CHARACTERS", 50)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "front.json")
    for each in (module, tables):
        monkeypatch.setattr(each, "HERE", tmp_path)
    (tmp_path / "front.md").write_text("before\n\n<!-- table -->\n<!-- end -->\n\nafter\n")
    return module


def run(front: ModuleType, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["front.py", *map(str, words)])
        front.main()


def point(name: str, label: str, kind: str, size: float, bits: float) -> dict[str, Any]:
    texts = {text: {"bits_per_byte": bits} for text in ("WikiText-2", "news")}
    sizes = {"bytes": size * 1e6, "parameters": 2_000_000}
    return {"name": name, "label": label, "type": kind, **sizes, "texts": texts}


@pytest.mark.parametrize("begins", [True, False])
def test_bits_are_those_of_pieces_of_the_same_characters(
    begins: bool, front: ModuleType, prose: str
) -> None:
    tokenizer = tiny_tokenizer(begins=begins)
    model = LanguageModel(tiny_model("llama"), tokenizer, "tiny")
    measured = front.bits_per_byte(model, Corpus("prose", prose))
    nats, count = 0.0, 0
    for piece in range(front.PIECES):
        text = prose[50 * piece : 50 * (piece + 1)]
        tokens = torch.tensor([[*([0] if begins else ()), *tokenizer.encode(text)[begins:]]])
        logits = model.model(tokens).logits[0].detach()
        nats += float(functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum"))
        count += len(text.encode()) - (not begins)
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, abs=2e-5)
    assert (measured["bytes"], measured["windows"]) == (count, 8)


def test_a_file_is_written_in_each_type_and_measured_once(
    front: ModuleType, tmp_path: Path, text_file: Path
) -> None:
    dense, folder, fake = tmp_path / "tiny.gguf", tmp_path / "made", tmp_path / "python"
    write_gguf(tiny_model("llama"), dense, tiny_tokenizer())
    # In the place of llama.cpp's quantizer: keeps the number of the type, and copies the file.
    fake.write_text('#!/bin/sh\necho "$5" >> "$0.asked"\ncp "$3" "$4"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    run(front, "types", dense, folder, "--cyllama", fake)
    kinds = ["F16", "Q3_K_M", "Q4_0", "Q4_K_M", "Q8_0"]
    assert sorted(path.name for path in folder.iterdir()) == [f"tiny-{k}.gguf" for k in kinds]
    assert (tmp_path / "python.asked").read_text().split() == ["15", "12"]
    files = [folder / f"tiny-{kind}.gguf" for kind in ("F16", "Q8_0", "Q4_0")]
    texts = ("--wikitext", text_file, "--news", text_file)
    for _ in range(2):
        run(front, "measure", "Tiny", *files, *texts)
    points = json.loads((tmp_path / "front.json").read_text())
    assert [each["type"] for each in points] == ["F16", "Q8_0", "Q4_0"]
    for each, file in zip(points, files, strict=True):
        assert each["bytes"] == file.stat().st_size
        assert each["parameters"] == sum(p.numel() for p in tiny_model("llama").parameters())
        assert sum(each["weights_by_type"].values()) == each["parameters"]
        assert list(each["texts"]) == ["WikiText-2", "Python docs", "news"]


def test_the_page_shows_what_is_above_dense_and_which_files_no_smaller_one_beats(
    front: ModuleType, tmp_path: Path
) -> None:
    points = [
        point("Tiny", "dense", "F16", 40, 1.0),
        point("Tiny", "dense", "Q4_K_M", 12, 1.1),
        point("Tiny", "cut", "Q8_0", 13, 1.25),
        point("Tiny", "another model", "IQ1_S", 11, 1.2),
        point("Other", "dense", "F16", 10, 2.0),
    ]
    (tmp_path / "front.json").write_text(json.dumps(points[1:]))
    with pytest.raises(PrunerZeroError, match=r"^measure Tiny DENSE\.gguf --label dense"):
        run(front, "page")
    (tmp_path / "front.json").write_text(json.dumps(points))
    run(front, "page")
    page = (tmp_path / "front.md").read_text()
    assert page.startswith("before\n\n<!-- table -->\n\n|")
    assert page.endswith("|\n\n<!-- end -->\n\nafter\n")
    one = "1.100 (+10.0 %)"
    assert f"| **Tiny, dense, Q4_K_M** | 12.0 | 2.0 | {one} | {one} | +10.0 % |" in page
    assert "| Tiny, cut, Q8_0 | 13.0 |" in page
    assert "| **Tiny, another model, IQ1_S** | 11.0 |" in page
    sizes = [line.split(" | ")[1] for line in page.splitlines() if ", " in line and "|" in line]
    assert sizes == ["40.0", "13.0", "12.0", "11.0", "10.0"]
    assert "| **Other, dense, F16** |" in page
    picture = (tmp_path / "front.svg").read_text()
    assert picture.startswith("<?xml")
    assert "another model" in picture
