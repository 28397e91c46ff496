"""The verbs that a fault may interrupt: how each is run, and what must not depend on the fault."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.cli.app import INTERRUPTED, main
from tests.cli.conftest import Outcome
from tests.evolution.test_run import TINY, journal
from tests.processes import Forked
from tests.pruning.test_resume import contents

Arguments = list[object]


@dataclass(frozen=True)
class Verb:
    """arguments: the command that begins or goes on in a folder, with all it keeps there.

    result: what the folder holds in the end, but for the time it took. work: the journal that
    tells how far it came, as a pattern.
    """

    arguments: Callable[[Path], Arguments]
    result: Callable[[Path], Any]
    work: str

    def is_done(self, folder: Path) -> bool:
        """Whether the result is in its place, as it may be a moment before the process ends."""
        return not self.work.startswith("out/") and (folder / "out").exists()

    def progress(self, folder: Path) -> int:
        """How many lines the journal has, 0 where there is none."""
        return sum(file.read_bytes().count(b"\n") for file in folder.glob(self.work))


def _search(model: Path, text: Path) -> Verb:
    def arguments(folder: Path) -> Arguments:
        run, cache = folder / "out", ["--cache", folder / "cache"]
        if (run / "run.json").exists():
            return ["search", "--resume", run, *cache]
        config = folder / "config.yaml"
        config.write_text(json.dumps({**TINY, "evaluations": 30}))
        texts = ["--calibration", text, "--search-text", text]
        return ["search", model, *texts, "--config", config, "-o", run, *cache]

    def result(folder: Path) -> Any:
        files = ("hall_of_fame.json", "best.json", "knee.json")
        return journal(folder / "out"), [(folder / "out" / one).read_bytes() for one in files]

    return Verb(arguments, result, "out/journal.jsonl")


def _prune(work: str, windows: int, *options: object) -> Callable[[Path, Path], Verb]:
    def verb(model: Path, text: Path) -> Verb:
        def arguments(folder: Path) -> Arguments:
            calibration = ["--calibration", text, "--windows", windows, "--seqlen", 32]
            places = ["-o", folder / "out", "--cache", folder / "cache"]
            return ["prune", model, "--sparsity", 0.5, *options, *calibration, *places]

        return Verb(arguments, lambda folder: contents(folder / "out"), work)

    return verb


def _recover(model: Path, text: Path) -> Verb:
    def arguments(folder: Path) -> Arguments:
        sizes = ["--steps", 16, "--seqlen", 32]
        return ["recover", model, "--text", text, "-o", folder / "out", *sizes]

    def result(folder: Path) -> Any:
        weights = (folder / "out" / "model.safetensors").read_bytes()
        return weights, (folder / "out" / "recovery.json").read_bytes()

    return Verb(arguments, result, "out.partial/steps/journal.jsonl")


VERBS: dict[str, Callable[[Path, Path], Verb]] = {
    "search": _search,
    "prune": _prune("out.partial/blocks/journal.jsonl", 12, "--metric", "wanda+obs"),
    "gradients": _prune(
        # So many windows that the gradients take most of the time, and most of the kills.
        "cache/*/gradients.partial/journal.jsonl",
        64,
        "--metric",
        "gblm",
        "--offload",
    ),
    "recover": _recover,
}


def run(*arguments: object) -> Outcome:
    """`pruner-zero ARGUMENTS` in this process; both streams are kept from the disk."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pruner-zero", *map(str, arguments)])
        patch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert isinstance(code, int)
    if code == INTERRUPTED:
        # It was the catalogue that was to stop.
        raise KeyboardInterrupt
    return Outcome(code, out.getvalue(), err.getvalue())


def one_line(outcome: Outcome) -> str:
    """The line that ends a refused command; checks that it is one, last, and short."""
    assert outcome.code == 2, outcome
    assert outcome.out == "", outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome
    assert outcome.err.splitlines()[-1] == errors[0]
    assert len(errors[0]) < 1000
    assert "Traceback" not in outcome.err
    return errors[0].removeprefix("error: ")


def halted(verb: Verb, folder: Path, lines: int) -> Forked:
    """A process of `verb` that stands still in a new folder, with so many lines in its journal."""
    while True:
        folder.mkdir()
        process = Forked(*verb.arguments(folder), log=folder.parent / "halted")
        while verb.progress(folder) < lines and process.process.is_alive():
            time.sleep(0.001)
        if process.process.is_alive():
            os.kill(process.process.pid or 0, signal.SIGSTOP)
            if verb.progress(folder) >= lines and not verb.is_done(folder):
                return process
            process.kill()
        # On a busy machine it may have come to its end unseen.
        assert verb.is_done(folder), process.err.read_text()
        shutil.rmtree(folder)
