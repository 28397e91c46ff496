"""`pruner-zero evaluate --speed` on a tiny model."""

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_it_prints_and_saves_a_table(cli: Cli, llama_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    words = ["evaluate", llama_folder, "--speed", "--seqlen", 8, "--beside", llama_folder]
    outcome = cli(*words, "-o", file)
    assert outcome.code == 0
    header, first, second, caption = outcome.out.splitlines()
    assert header.split() == ["model", "parameters", "bytes", "prefill", "decode"]
    assert first.split()[:3] == second.split()[:3] == [str(llama_folder), "31,968", "127,872"]
    assert caption.startswith("tokens a second, batch 1: prefill of 8 tokens, decoding of 32")
    assert [row["parameters"] for row in json.loads(file.read_text())["speed"]] == [31968, 31968]
