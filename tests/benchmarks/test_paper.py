"""The script of the paper's tables measures what the package measures, and goes on when killed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pruner_zero import compare, evaluate
from pruner_zero.text.corpus import load_corpus
from tests.benchmarks.conftest import BENCHMARKS
from tests.evaluation.local_task import QUESTIONS, write_task
from tests.processes import Forked

LIMIT = 7
SIZES = {"windows": 2, "seqlen": 16, "windows_eval": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def paper(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("paper")


@pytest.fixture
def page(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("paper_page")


@pytest.fixture
def texts(tmp_path: Path, prose: str) -> dict[str, Path]:
    """Three different texts by the option that names them."""
    files = {}
    for place, name in enumerate(("calibration", "gradients", "text")):
        files[name] = tmp_path / f"{name}.txt"
        files[name].write_text(prose[1500 * place : 1500 * (place + 1)])
    return files


def arguments(model: Path, folder: Path, texts: dict[str, Path], *more: object) -> list[str]:
    sizes = {f"--{name.replace('_', '-')}": size for name, size in SIZES.items()}
    named = {f"--{name}": file for name, file in texts.items()}
    given = {**sizes, **named, "--folder": folder, "--dtype": "float32"}
    pairs = [word for pair in given.items() for word in pair]
    return [*map(str, (model, *pairs, "--zeros", 50, "2-4", *more))]


def measured(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    cells = json.loads((folder / "paper.json").read_text())["cells"]
    return {(cell["zeros"], cell["method"], cell["measure"]): cell for cell in cells}


def test_numbers_are_those_of_the_package(
    paper: ModuleType, tmp_path: Path, llama_folder: Path, texts: dict[str, Path]
) -> None:
    tasks, folder = write_task(tmp_path), tmp_path / "run"
    asked = ("--tasks", "kinds", "--include-path", tasks, "--limit", LIMIT)
    paper.main(arguments(llama_folder, folder, texts, *asked))
    cells = measured(folder)
    pruned = ("magnitude", "wanda", "sparsegpt", "pruner-zero")
    assert {key[:2] for key in cells} == {
        ("dense", "dense"),
        *((zeros, method) for zeros in ("50", "2-4") for method in pruned),
    }
    # The papers take magnitudes over a whole matrix.
    methods = ["dense", "magnitude@matrix", "wanda", "sparsegpt"]
    given: dict[str, Any] = {"sparsity": 0.5, "text": texts["text"], **SIZES}
    rows = compare(llama_folder, methods, calibration=texts["calibration"], **given).rows
    # The published tree has a calibration text of its own.
    rows += compare(llama_folder, "pruner-zero", calibration=texts["gradients"], **given).rows
    for row in rows:
        method = row["method"].removesuffix("@matrix")
        zeros = "dense" if method == "dense" else "50"
        cell = cells[zeros, method, "perplexity"]
        assert cell["perplexity"] == pytest.approx(row["perplexity"], rel=1e-5), method
    scores = evaluate(llama_folder, tasks="kinds", include_path=tasks, limit=LIMIT).rows[0]
    cell = cells["dense", "dense", "kinds"]
    assert {name: cell[name] for name in scores} == scores
    # Tasks are run where --task-zeros says so.
    assert ("50", "wanda", "kinds") in cells
    assert ("2-4", "wanda", "kinds") not in cells
    # Nothing but the numbers stays.
    assert not list(folder.glob("pruned-*"))


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(
    paper: ModuleType, tmp_path: Path, llama_folder: Path, texts: dict[str, Path]
) -> None:
    def given(folder: Path) -> list[str]:
        return arguments(llama_folder, folder, texts, "--tasks")

    paper.main(given(tmp_path / "whole"))
    killed = tmp_path / "killed"
    script = BENCHMARKS / "paper.py"
    process = Forked(*given(killed), log=tmp_path / "log", script=script)
    while not any(killed.glob("*-perplexity-*.json")):
        assert process.process.is_alive(), process.err.read_text()
        time.sleep(0.001)
    process.kill()
    before = {file: file.stat().st_mtime_ns for file in killed.glob("*-perplexity-*.json")}
    whole = measured(tmp_path / "whole")
    assert len(before) < len(whole)
    paper.main(given(killed))
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    losses = {key: cell["losses"] for key, cell in whole.items()}
    assert {key: cell["losses"] for key, cell in measured(killed).items()} == losses


def test_an_unfinished_model_of_another_version_is_begun_again(
    paper: ModuleType, tmp_path: Path, llama_folder: Path, texts: dict[str, Path]
) -> None:
    given = arguments(llama_folder, tmp_path, texts, "--tasks", "--methods", "wanda")
    settings = paper.settled(paper.options().parse_args(given))
    for row in paper.plan(settings):
        weights = paper.weights_settings(row, settings, lambda name: load_corpus(texts[name]))
        blocks = tmp_path / f"pruned-{paper.cache_key(weights)}.partial" / "blocks"
        blocks.mkdir(parents=True)
        (blocks.parent / ".lock").touch()
        (blocks / "journal.jsonl").write_text('{"run": {"--old": "1"}}\n{"block": 0}\n')
    paper.main(given)
    assert len(measured(tmp_path)) == len(paper.plan(settings))


def test_a_number_whose_settings_changed_is_measured_anew(
    paper: ModuleType, tmp_path: Path, llama_folder: Path, texts: dict[str, Path]
) -> None:
    tasks, folder = write_task(tmp_path), tmp_path / "run"

    def run(limit: int) -> dict[tuple[str, str, str], dict[str, Any]]:
        asked = ("--tasks", "kinds", "--include-path", tasks, "--methods", "dense", "magnitude")
        paper.main(arguments(llama_folder, folder, texts, *asked, "--limit", limit))
        return measured(folder)

    def files() -> set[Path]:
        return set(folder.glob("*-*.json"))

    run(2)
    first = files()
    cells = run(LIMIT)
    assert {cell["documents"] for key, cell in cells.items() if key[2] == "kinds"} == {LIMIT}
    assert {"-kinds-" in file.name for file in files() - first} == {True}
    # Another text for a method that looks at none changes nothing.
    second = files()
    texts["calibration"].write_text("other words " * 100)
    run(LIMIT)
    assert files() == second


def test_a_model_that_the_paper_does_not_have_needs_a_length(
    paper: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        paper.main(["my-model", "--folder", str(tmp_path)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: the paper does not have the model my-model: give --seqlen")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "column", "seqlen"),
    [
        ("meta-llama/Llama-2-7b-hf", "L2-7B", 4096),
        ("huggyllama/llama-13b", "L1-13B", 2048),
        ("folder/Llama-2-7b-chat-hf", None, None),
    ],
)
def test_the_column_of_the_paper_is_told_by_the_name(
    load_benchmark: Callable[[str], ModuleType], model: str, column: str | None, seqlen: int | None
) -> None:
    protocol = load_benchmark("paper_protocol")
    assert protocol.column_of(model) == column
    if column:
        assert protocol.published()[column]["seqlen"] == seqlen


def settings(paper: ModuleType, *given: str) -> dict[str, Any]:
    values: dict[str, Any] = paper.settled(paper.options().parse_args(given))
    return values


def cell(zeros: str, method: str, measure: str, **values: Any) -> dict[str, Any]:
    text = {"windows": 2, "seqlen": 16, "text": "t", "text_sha256": "s"}
    origin = {"torch": "2", "transformers": "5", "git": "c", "threads": 1}
    pruned = {"expression": "W * X", "scope": "row"}
    base = {"zeros": zeros, "method": method, "measure": measure, "device": "cpu"}
    return base | {"text": text, "provenance": origin, "pruned": pruned} | values


def written(page: ModuleType, folder: Path, given: dict[str, Any], *cells: Any) -> str:
    table = {"settings": given, "cells": list(cells)}
    page.write_page(table, "the command", folder / "page.md", folder / "results" / "r.json")
    return (folder / "page.md").read_text()


def test_published_numbers_stand_beside_those_of_the_same_model(
    paper: ModuleType, page: ModuleType, tmp_path: Path
) -> None:
    given = settings(paper, "meta-llama/Llama-2-7b-hf")
    wanda = cell("50", "wanda", "perplexity", perplexity=6.444)
    dense = cell("dense", "dense", "perplexity", perplexity=5.121)
    text = written(page, tmp_path, given, dense, wanda)
    assert "| method | 50 % | published | 2:4 | published | 4:8 | published |" in text
    assert "| `dense` | 5.12 | 5.12 | 5.12 | 5.12 | 5.12 | 5.12 |" in text
    assert "| `wanda` | 6.44 | 6.42 | – | 11.02 | – | 7.97 |" in text
    assert "| `pruner-zero` | – | 6.26 | – | 10.52 | – |  |" in text
    assert "(results/r.json)" in text
    assert "the paper's | here" not in text
    limited = settings(paper, "meta-llama/Llama-2-7b-hf", "--limit", "9")
    assert "| only the first questions of each task | – | 9 |" in written(page, tmp_path, limited)


def test_another_model_has_no_published_numbers_and_the_page_says_so(
    paper: ModuleType, page: ModuleType, tmp_path: Path
) -> None:
    given = settings(paper, "my-model", "--seqlen", "16", "--windows", "3")
    text = written(page, tmp_path, given)
    assert "Its numbers are not the paper's and do not compare with them." in text
    assert "| calibration windows | 128 | 3 |" in text
    assert "| method | 50 % | 2:4 | 4:8 |" in text


def test_kinds_of_scores_are_never_mixed(
    paper: ModuleType, page: ModuleType, tmp_path: Path
) -> None:
    given = settings(paper, "my-model", "--seqlen", "16", "--methods", "wanda")
    given["tasks"] = ["both", "acc_only"]
    error = {"acc_stderr": 0.01, "acc_norm_stderr": 0.02, "documents": len(QUESTIONS)}
    both = cell("50", "wanda", "both", acc=0.5, acc_norm=0.75, **error)
    acc_only = cell("50", "wanda", "acc_only", acc=0.25, **error)
    text = written(page, tmp_path, given, both, acc_only)
    assert (
        "| method | both | acc_only | mean of 2 |\n| --- | --- | --- | --- |\n| `wanda` | 50.0 |"
        in text
    )
    assert "| 50.0 | 25.0 | 37.5 |" in text
    assert "| method | both | mean of 1 |\n| --- | --- | --- |\n| `wanda` | 75.0 | 75.0 |" in text


def test_a_mean_needs_every_task(paper: ModuleType, page: ModuleType, tmp_path: Path) -> None:
    given = settings(paper, "my-model", "--seqlen", "16", "--methods", "dense", "wanda")
    given["tasks"] = ["a", "b"]
    scores = {"acc": 0.5, "acc_stderr": 0.01, "documents": 12}
    cells = [cell("dense", "dense", task, **scores) for task in "ab"]
    text = written(page, tmp_path, given, *cells, cell("50", "wanda", "a", **scores))
    assert "| `dense` | 50.0 | 50.0 | 50.0 |" in text
    assert "| `wanda` | 50.0 | – | – |" in text
