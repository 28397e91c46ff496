"""`pruner-zero cache` on the cache of a real run."""

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_the_statistics_and_the_text_of_a_run_are_listed_and_cleared(
    cli: Cli, llama_folder: Path, tmp_path: Path
) -> None:
    cache = ["--cache", tmp_path / "cache"]
    options = ["--metric", "wanda", "--sparsity", "0.5", "--windows", 2, "--seqlen", 16]
    assert cli("prune", llama_folder, *options, *cache, "-o", tmp_path / "out").code == 0
    found = json.loads(cli("cache", "list", *cache, "--json").out)
    assert [entry["what"] for entry in found] == ["statistics", "text"]
    assert {entry["model"] for entry in found} == {str(llama_folder)}
    lines = cli("cache", "list", *cache).out.splitlines()
    assert [line.split()[0] for line in lines] == ["what", "statistics", "text", "2"]
    assert cli("cache", "clear", "--older-than", 1, *cache).out.endswith("MB; 2 stay\n")
    assert cli("cache", "clear", *cache).out.startswith("deleted 2 entries, ")
    assert cli("cache", "list", *cache, "--json").out == "[]\n"


def test_days_below_zero_are_refused(cli: Cli) -> None:
    assert "--older-than" in cli("cache", "clear", "--older-than", "-1").error
