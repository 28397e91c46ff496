"""`pruner-zero search` prints the command that prunes with its best metric."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

SIZES = ["--windows", 2, "--seqlen", 16, "--search-windows", 2, "--workers", 1, "--evaluations", 4]


@pytest.mark.parametrize("source", ["option", "file"])
def test_the_command_that_prunes_names_the_update(
    source: str, cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    texts = ["--calibration", text_file, "--search-text", text_file, "--sparsity", 0.5]
    config, output = tmp_path / "config.yaml", tmp_path / "run"
    update = "update: exact\n" if source == "file" else ""
    config.write_text("algorithm_settings: {initial: 8, batch: 8}\n" + update)
    option = ["--update", "exact"] if source == "option" else []
    files = ["--config", config, "-o", output]
    outcome = cli("search", llama_folder, *texts, *SIZES, *option, *files)
    assert outcome.code == 0, outcome
    last = outcome.out.splitlines()[-1]
    assert last.endswith(f"--metric {output / 'best.json'} --update exact …")


def test_a_resumed_run_takes_no_other_settings(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: 3\n")
    outcome = cli("search", "--resume", tmp_path / "run", "--config", config)
    assert outcome.code == 2
    assert "leave out --config" in outcome.err
