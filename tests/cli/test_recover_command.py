"""`pruner-zero recover` takes a pruned model and a text, and writes a better model."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.recovery.conftest import save_pruned


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pruned tiny model."""
    return save_pruned(tmp_path_factory.mktemp("models") / "pruned")


SMALL = ("--steps", 3, "--seqlen", 16, "--learning-rate", "0.01")


def test_it_reports_the_recovered_model(
    cli: Cli, model: Path, text_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = cli("recover", model, "--text", text_file, *SMALL, "-o", output)
    assert done.code == 0, done
    assert done.out.startswith(f"{output}: 50.00% zeros; loss on held-out text ")
    assert done.out.endswith(" at step 3\n")
    assert done.out.count("\n") == 1
    assert done.err.splitlines()[0].startswith("step 0, ")
    assert (output / "recovery.json").is_file()


def test_json_output(cli: Cli, model: Path, text_file: Path, tmp_path: Path) -> None:
    done = cli("recover", model, "--text", text_file, *SMALL, "--json", "-o", tmp_path / "out")
    report = json.loads(done.out)
    assert (report["output"], report["kept_step"]) == (str(tmp_path / "out"), 3)
    assert report["sparsity_after"] == 0.5
    assert report["loss_after"] < report["loss_before"]


def test_everything_may_come_from_the_file(
    cli: Cli, model: Path, text_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {model}\ntext: {text_file}\nsteps: 2\nseqlen: 16\n")
    result = json.loads(cli("recover", "--config", config, "-o", tmp_path / "one", "--json").out)
    assert (result["curve"][-1]["step"], result["settings"]["seqlen"]) == (2, 16)
    # The resolved settings that were written give the same weights.
    report = json.loads((tmp_path / "one" / "recovery.json").read_text())
    config.write_text(json.dumps(report["settings"]))
    assert cli("recover", "--config", config, "-o", tmp_path / "two").code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_bad_input_is_refused_in_one_line(
    cli: Cli, model: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    good = ("recover", model, "--text", text_file, "-o", tmp_path / "out")
    assert "--minutes is 0.0" in cli(*good, "--minutes", 0).error
    assert "is not pruned" in cli("recover", llama_folder, *good[2:], *SMALL).error
    assert "no text to train on" in cli("recover", model, "-o", tmp_path / "out").error
    assert "'model' is missing" in cli("recover", *good[2:]).error
    assert "Missing option '--output'" in cli(*good[:4]).error
    assert "which this command reads: choose another output" in cli(*good[:4], "-o", model).error
    assert not list(tmp_path.iterdir())
