"""The commands of a report make its results again: real runs on a tiny model."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pruner_zero import compare, prune
from pruner_zero.evolution.run import search
from pruner_zero.evolution.study import Study
from pruner_zero.report.page import report
from tests.cli.conftest import Cli, cli
from tests.report.html import Page

__all__ = ["cli"]

SIZES: dict[str, Any] = {"windows": 3, "seqlen": 16, "sparsity": 0.5}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, as a shell reads them, without the files of settings before."""
    return [shlex.split(command.split("END\n")[-1]) for command in Page(page.read_text()).commands]


@pytest.mark.slow
def test_the_commands_give_the_same_results(
    llama_folder: Path, text_file: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"calibration": text_file, **SIZES}
    search(
        llama_folder,
        search_text=text_file,
        output="run",
        evaluations=20,
        search_windows=3,
        workers=1,
        algorithm_settings={"initial": 24, "batch": 16},
        **texts,
    )
    prune(llama_folder, "W * sqrt(G)@matrix", output="pruned", seed=1, **texts)
    compare(llama_folder, ["dense", "wanda"], text=text_file, output="table.json", **texts)
    page = report(["run", "pruned", "table.json"], "page.html")
    first_page, first = page.read_bytes(), Page(page.read_text()).commands[0]
    assert first.startswith("cat > settings.yaml <<'END'\n")
    Path("settings.yaml").write_text(first.split("\n", 1)[1].split("END\n")[0])
    for command in commands(page):
        assert cli(*command[1:]).code == 0, command
    assert _known(Study.open("run-again").records) == _known(Study.open("run").records)
    for name in ("pruned/pruning.json", "table.json"):
        again = name.replace("pruned/", "pruned-again/").replace("table.", "table-again.")
        assert _result(Path(again)) == _result(Path(name))
    assert json.loads(Path("run-pruned/metric.json").read_text()) == json.loads(
        Path("run/best.json").read_text()
    )
    assert json.loads(Path("run-pruned/pruning.json").read_text())["settings"]["mode"] == "one-shot"
    assert first_page == page.read_bytes()


def _known(records: Any) -> list[Any]:
    return [(str(record.candidate.expression), record.evaluation.results) for record in records]


def _result(file: Path) -> Any:
    content = json.loads(file.read_text())
    rows = content.get("rows")
    return [(row["method"], row["perplexity"]) for row in rows] if rows else content["matrices"]
