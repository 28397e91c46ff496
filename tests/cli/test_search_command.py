"""What `pruner-zero search` prints, and how `--resume` changes its budget."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pruner_zero.cli.search_command import _print
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.evaluator import MaskedModel
from pruner_zero.evolution.record import SearchJournal
from pruner_zero.evolution.several_models import Models
from pruner_zero.evolution.study import Study
from tests.cli.conftest import Cli
from tests.report.conftest import Judged, write_search

SIZES = ["--windows", 2, "--seqlen", 16, "--search-windows", 2, "--workers", 1, "--evaluations", 4]


def test_the_command_that_prunes_can_be_pasted(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    texts = ["--calibration", text_file, "--search-text", text_file, "--sparsity", 0.5]
    config, output = tmp_path / "config.yaml", tmp_path / "the run"
    config.write_text("algorithm_settings: {initial: 8, batch: 8}")
    units = ["--structure", "channels", "--config", config, "-o", output]
    outcome = cli("search", llama_folder, *texts, *SIZES, *units)
    assert outcome.code == 0, outcome
    command = shlex.split(outcome.out.splitlines()[-1].removeprefix("prune with it: "))
    assert command[:3] == ["pruner-zero", "prune", str(llama_folder)]
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert given["--metric"] == str(output / "best.json")
    assert given["--structure"] == "channels"
    assert cli(*command[1:]).code == 0
    described = json.loads((Path(given["-o"]) / "pruning.json").read_text())["settings"]
    assert (described["windows"], described["sparsity"]) == (2, 0.5)


@pytest.mark.parametrize(("loss", "line"), [(-0.25, "prune with it: "), (0.0, "no metric is ")])
def test_a_metric_that_is_no_better_than_wanda_on_several_models_is_no_success(
    loss: float, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"few": loss, "all": loss, "a": loss, "b": loss}
    judged: list[Judged] = [("W * O", "row", {"reconstruction": 0.0, **results})]
    study = Study.open(write_search(tmp_path / "run", judged))
    _print(replace(study, models=Models(("a", "b"))))
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


@pytest.fixture
def words(llama_folder: Path, text_file: Path, tmp_path: Path) -> list[object]:
    """The arguments of a small search, without a budget and the folder."""
    config = tmp_path / "config.yaml"
    config.write_text("algorithm_settings: {initial: 8, batch: 8}\nfinal_windows: 0\n")
    texts = ["--calibration", text_file, "--search-text", text_file, "--sparsity", 0.5]
    return ["search", llama_folder, *texts, *SIZES[:-2], "--config", config]


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_search_ends_with_130(
    as_json: bool, cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pruner_zero.evolution.run.Status.of", interrupt)
    run = tmp_path / "the run"
    outcome = cli(*words, "--evaluations", 8, "-o", run, *(["--json"] if as_json else []))
    assert outcome.code == 130
    if as_json:
        assert json.loads(outcome.out)["stopped"] == "interrupted"
    else:
        assert outcome.out.endswith(f"to continue: pruner-zero search --resume '{run}'\n")


def test_a_search_in_which_no_metric_works_names_no_command(
    cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PrunerZeroError("no")

    monkeypatch.setattr(MaskedModel, "losses", fail)
    config = tmp_path / "config.yaml"
    config.write_text("algorithm: published\nfinal_windows: 0\n")
    monkeypatch.setattr("pruner_zero.evolution.run._CANDIDATES_WITHOUT_NEWS", 10)
    outcome = cli(*words, "--evaluations", 8, "-o", tmp_path / "run")
    assert outcome.code == 2, outcome
    line = "error: the search found no metric that works: give it a larger budget"
    assert outcome.err.splitlines()[-1] == line
    assert "prune with it" not in outcome.out


def test_a_closed_form_error_is_shown_without_a_perplexity(
    cli: Cli, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PrunerZeroError("no")

    monkeypatch.setattr(MaskedModel, "losses", fail)
    outcome = cli(*words, "--evaluations", 8, "--json", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome
    rows = json.loads(outcome.out)["hall_of_fame"]
    assert rows
    assert {row["perplexity"] for row in rows} == {None}


def test_a_resumed_run_may_have_a_budget_of_another_kind(
    cli: Cli, words: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli(*words, "--minutes", 0.0001, "-o", run).code == 0
    before = len(SearchJournal(run).records)
    assert cli("search", "--resume", run, "--evaluations", before + 1).code == 0
    assert len(SearchJournal(run).records) > before
    described = json.loads((run / "run.json").read_text())["settings"]
    assert (described["minutes"], described["evaluations"]) == (None, before + 1)
    again = cli("search", "--resume", run, "--output", run / ".." / "run")
    assert again.code == 0, again
    other = cli("search", "--resume", run, "--output", tmp_path / "other")
    assert other.error == f"--resume {run} writes to that folder: leave out --output"


def test_a_resumed_run_takes_no_other_settings(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: 3\n")
    outcome = cli("search", "--resume", tmp_path / "run", "--config", config)
    assert outcome.code == 2
    assert "leave out --config" in outcome.err
