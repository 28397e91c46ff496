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
from pruner_zero.provenance import provenance
from tests.conftest import save_tiny
from tests.processes import Forked
from tests.text.refusals import refusal
from tests.tiny import FOX, Notes, tiny_tokenizer
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


def test_a_finished_table_is_replaced_on_request_alone(
    options: dict[str, Any],
) -> None:
    compare(loaded(), "dense,magnitude", **options)
    before = options["output"].read_bytes()
    line = refusal(lambda: compare(loaded(), "dense", **options))
    assert line.endswith("holds a finished table: choose another file, or add --overwrite")
    assert options["output"].read_bytes() == before
    heard = Notes()
    with reported_to(heard):
        compare(loaded(), "dense", overwrite=True, **options)
    assert heard.lines == ["dense …"]


def test_neither_the_machine_nor_a_package_ends_a_table(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = interrupt("wanda", "dense,magnitude,wanda", options)
    elsewhere = {**provenance(), "platform": "new", "threads": 64, "torch": "9.9", "git": "dirty"}
    monkeypatch.setattr("pruner_zero.measuring.origin.provenance", lambda: elsewhere)
    heard = Notes()
    with reported_to(heard):
        # Methods may be added, and their order changed.
        methods = "magnitude,wanda,dense,gblm"
        table = compare(loaded(), methods, device="cpu", **options)
    assert heard.lines == [f"{options['output']} has 2 of 4 rows already", "wanda …", "gblm …"]
    assert [table.rows[2], table.rows[0]] == earlier["rows"]
    (other,) = table.provenance["continued"]
    assert {**other, "settings": None} == {
        **{name: elsewhere[name] for name in ("platform", "threads", "torch", "git")},
        "settings": None,
    }
    assert table.provenance["platform"] == earlier["provenance"]["platform"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sparsity": 0.6, "windows_eval": 2}, "--sparsity, --windows-eval"),
        ({"methods": "wanda"}, "--methods"),
        ({"text": [FOX]}, "the tokens of the text"),
        ({"calibration": [FOX]}, "the tokens of the calibration"),
        ({}, "the model's weights"),
    ],
    ids=str,
)
def test_rows_of_another_comparison_are_kept(
    change: dict[str, Any], named: str, options: dict[str, Any]
) -> None:
    earlier = interrupt("wanda", "dense,wanda", options)
    assert len(earlier["rows"]) == 1
    model = loaded()
    if not change:
        with torch.no_grad():
            next(model.model.parameters())[0, 0] += 1
    options = {"methods": "dense,wanda", **options, **change}
    assert f"unfinished table of other settings ({named} changed)" in refusal(
        lambda: compare(model, **options)
    )
    assert json.loads(options["output"].read_text()) == earlier
    assert len(compare(model, overwrite=True, **options).rows) == len(options["methods"].split(","))


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
        f"{tree} is measured again, because the method has changed",
        f"{options['output']} has 1 of 4 rows already",
        *("W - W …", f"{tree} …", "wanda …"),
    ]
    assert [row["method"] for row in table.rows] == methods.split(",")
    assert table.complete
