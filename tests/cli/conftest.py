"""The command line inside this process: `main` with real arguments and streams."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pruner_zero.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """The exit code and both streams of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that refuses the command before its work; there is nothing else."""
        assert len(self.err.splitlines()) == 1, self
        return self.last_error

    @property
    def last_error(self) -> str:
        """The one line that ends the command, after the notes of what was to be done."""
        *notes, line = self.err.splitlines()
        assert (self.code, self.out) == (2, ""), self
        assert line.startswith("error: "), self
        assert not any(note.startswith("error: ") for note in notes), self
        return line.removeprefix("error: ")


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `pruner-zero ARGUMENTS` and return its outcome."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pruner-zero", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    return run


def tree(folder: Path) -> dict[str, int]:
    """Every path under `folder` with its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path) -> Callable[..., str]:
    """The error line of a `prune` with these options in place of valid options."""

    def run(*options: object, model: object = llama_folder, text: object = text_file) -> str:
        before = tree(tmp_path)
        texts = [] if text is None else ["--calibration", text]
        sizes = ["--windows", 2, "--seqlen", 16]
        output = [] if "-o" in options else ["-o", tmp_path / "out"]
        line = cli("prune", model, *texts, *sizes, *output, *options).last_error
        assert tree(tmp_path) == before
        return line

    return run
