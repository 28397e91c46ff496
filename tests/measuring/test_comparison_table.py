"""A comparison that was killed is continued by the same command; real SIGKILLs."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero import Metric, compare
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.progress import Progress, reported_to
from tests.conftest import save_tiny
from tests.processes import Forked
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

METHODS = "dense,magnitude,wanda,wanda@global,sparsegpt"


class Cut(Progress):
    """Ends the run where this row begins."""

    def __init__(self, method: str) -> None:
        self.method = method

    def note(self, line: str) -> None:
        if line == f"{self.method} …":
            raise KeyboardInterrupt


@pytest.fixture
def options(prose: str, tmp_path: Path) -> dict[str, Any]:
    half = len(prose) // 2
    return {
        "calibration": [prose[:half]],
        "text": [prose[half:]],
        "sparsity": 0.5,
        "windows": 3,
        "seqlen": 24,
        "windows_eval": 3,
        "cache": tmp_path / "cache",
        "output": tmp_path / "table.json",
    }


def loaded() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "mine")


def interrupt(method: str, methods: str, options: dict[str, Any]) -> dict[str, Any]:
    """The file of a comparison that ends where the row of `method` begins."""
    with pytest.raises(KeyboardInterrupt), reported_to(Cut(method)):
        compare(loaded(), methods, **options)
    table: dict[str, Any] = json.loads(options["output"].read_text())
    return table


@pytest.mark.fault("SIGKILL of a comparison", "the same command keeps the finished rows")
def test_after_a_kill_the_same_command_adds_the_missing_rows(
    text_file: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", blocks=4)
    file = tmp_path / "table.json"
    command = [
        *("compare", model, "--calibration", text_file, "--text", text_file, "--sparsity", 0.5),
        *("--windows", 8, "--seqlen", 32, "--windows-eval", 8, "--methods", METHODS),
        *("--cache", tmp_path / "cache"),
    ]
    process = Forked(*command, "-o", file, log=tmp_path / "log")
    while process.process.is_alive() and not file.exists():
        time.sleep(0.001)
    process.kill()
    assert process.process.exitcode == -signal.SIGKILL
    cut = json.loads(file.read_text())
    assert cut["complete"] is False
    assert 1 <= len(cut["rows"]) < 5
    again = Forked(*command, "-o", file, log=tmp_path / "again")
    assert again.end() == 0
    table = json.loads(file.read_text())
    assert table["complete"] is True
    # Seconds and memory too.
    assert table["rows"][: len(cut["rows"])] == cut["rows"]
    assert f"{file} has {len(cut['rows'])} of 5 rows already" in again.err.read_text()
    whole = Forked(*command, "-o", tmp_path / "whole.json", log=tmp_path / "log")
    assert whole.end() == 0
    losses = [
        [(row["method"], row["losses"]) for row in rows]
        for rows in (table["rows"], json.loads((tmp_path / "whole.json").read_text())["rows"])
    ]
    assert losses[0] == losses[1]


def test_a_finished_comparison_is_made_anew(options: dict[str, Any]) -> None:
    heard = Notes()
    for _ in range(2):
        with reported_to(heard):
            compare(loaded(), "dense,magnitude", **options)
    assert heard.lines == ["dense …", "magnitude …"] * 2


@pytest.mark.parametrize("change", ["settings", "text", "weights"])
def test_rows_of_another_comparison_are_not_continued(change: str, options: dict[str, Any]) -> None:
    assert len(interrupt("wanda", "dense,wanda", options)["rows"]) == 1
    heard, model = Notes(), loaded()
    if change == "settings":
        options["sparsity"] = 0.6
    elif change == "text":
        options["text"] = [options["text"][0][1:]]
    else:
        with torch.no_grad():
            next(model.model.parameters())[0, 0] += 1
    with reported_to(heard):
        table = compare(model, "dense,wanda", **options)
    assert heard.lines == ["dense …", "wanda …"]
    assert len(table.rows) == 2


def test_rows_that_failed_or_whose_tree_file_changed_are_made_anew(
    options: dict[str, Any], tmp_path: Path
) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps(Metric.of("abs(W)").to_tree()))
    methods = f"dense,W - W,{tree},wanda"
    assert len(interrupt("wanda", methods, options)["rows"]) == 3
    tree.write_text(json.dumps(Metric.of("W * W").to_tree()))
    heard = Notes()
    with reported_to(heard):
        table = compare(loaded(), methods, **options)
    assert heard.lines == [
        f"{options['output']} has 1 of 4 rows already",
        *("W - W …", f"{tree} …", "wanda …"),
    ]
    assert [row["method"] for row in table.rows] == methods.split(",")
    assert table.complete
