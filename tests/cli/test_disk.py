"""Disks that are full, read-only or mounted: one line, no half-written file, a run that goes on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.pruning.prune import prune
from tests.cli.conftest import Cli, tree
from tests.full_disk import full_disk

HALF = ("--sparsity", "0.5")


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
@pytest.mark.parametrize(
    ("metric", "limit", "file"),
    [
        ("gblm", 4_000, "G-0000.safetensors"),
        ("wanda", 20_000, "weights-0000.safetensors"),
        ("wanda", 80_000, "result"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_afterwards(
    metric: str,
    limit: int,
    file: str,
    cli: Cli,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    arguments = ["prune", llama_folder, "--calibration", text_file, *HALF, "-o", output]
    arguments += ["--windows", 2, "--seqlen", 16, "--cache", tmp_path / "cache"]
    arguments += ["--metric", metric]
    with full_disk(limit):
        outcome = cli(*arguments)
    assert outcome.code == 2
    [line] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert "cannot be written (no space left" in line
    assert file in line
    assert not output.exists()
    assert not [name for name in tree(tmp_path) if "/" in name and name.endswith(".partial")]
    outcome = cli(*arguments)
    assert outcome.code == 0
    assert ("going on after block 2" in outcome.err) == (file == "result")
    assert (output / "model.safetensors").exists()
    assert sorted(os.listdir(tmp_path)) == ["cache", "out"]


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kB, where the machine lets the test mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=300k tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("mounting needs root")
    yield folder
    os.system(f"umount '{folder}'")


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
@pytest.mark.parametrize("taken", [280_000, 200_000, 120_000])
def test_a_really_full_disk(
    taken: int, nearly_full: Path, cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    ballast = nearly_full / "ballast"
    ballast.write_bytes(b"\0" * taken)
    output = nearly_full / "out"
    arguments = ["prune", llama_folder, "--calibration", text_file, *HALF, "-o", output]
    arguments += ["--windows", 2, "--seqlen", 16, "--cache", tmp_path / "cache"]
    outcome = cli(*arguments)
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2
    assert len(lines) == 1
    assert "cannot be written (no space left" in lines[0]
    assert not output.exists()
    ballast.unlink()
    outcome = cli(*arguments)
    if outcome.code:
        # The work itself needs more than the whole disk.
        assert "no space left" in outcome.err
        assert not output.exists()
    else:
        assert (output / "model.safetensors").exists()


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
def test_an_output_in_a_folder_that_is_read_only(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o ro tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("mounting needs root")
    try:
        line = refused(*HALF, "-o", folder / "out")
    finally:
        os.system(f"umount '{folder}'")
    assert "disk is not writable" in line


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
def test_a_mount_point_cannot_be_replaced(
    nearly_full: Path, llama_folder: Path, text_file: Path
) -> None:
    with pytest.raises(PrunerZeroError, match="is a mount point: choose a folder inside it"):
        prune(
            llama_folder,
            sparsity=0.5,
            calibration=text_file,
            windows=2,
            seqlen=16,
            output=nearly_full,
        )
