"""Mutation testing of the expression language and of sparsity: does a test fail for each fault?

    make mutants

Draws faults of the modules below (`mutants.py`). For each fault, the tests that mirror the module
run in their own process; where none of them fails, all tests of the room run. Every verdict is
written at once to benchmarks/results/mutation.json, so that an interrupted run continues. A module
that has changed is judged anew, survivors are judged anew with --again. mutation.md is written from
that file. Hypothesis tries at most 60 examples, always the same ones.
"""

import argparse
import compileall
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

from equivalent_mutants import EQUIVALENT
from mutants import Mutant, mutants
from pruner_zero.files import write_atomic
from pruner_zero.provenance import provenance
from tables import markdown

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULT = HERE / "results/mutation.json"

# A module → the tests that mirror it.
MODULES = {
    "metric/canonical/form": "form",
    "metric/canonical/normal": "form",
    "metric/canonical/facts": "facts",
    "metric/evaluate": "evaluate",
    "metric/operator": "operators",
    "metric/operators": "operators",
    "metric/canonical/simplify": "simplify",
    "metric/expression": "expression",
    "sparsity/selection": "selection",
    "sparsity/hessian": "hessian",
    "sparsity/steps/sweep": "sweep",
    "sparsity/steps/conjugate_gradients": "least_squares",
    "sparsity/steps/least_squares": "least_squares",
    "sparsity/steps/swaps": "swaps",
    "sparsity/steps/exact_swaps": "exact_swaps",
    "sparsity/steps/registry": "registry",
    "sparsity/threshold": "threshold",
    "sparsity/layer_error": "layer_error",
}
EXAMPLES = 60
# Processor time that a mutant may take, so that a busy machine causes no timeouts.
LIMIT_SECONDS = 30
LIMIT_BYTES = 4 * 2**30


class Judge:
    """Runs pytest on fewer examples and sends the names of failed tests."""

    def __init__(self, sender: Connection) -> None:
        self.sender = sender

    def pytest_configure(self, config: pytest.Config) -> None:
        # As in tests/conftest.py, which is not loaded since it imports transformers.
        config.addinivalue_line("markers", "fault(name, holds): a fault that is really made")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        held = "_hypothesis_internal_use_settings"
        for item in items:
            test = getattr(item, "obj", None)
            given = getattr(test, held, None)
            if given is not None:
                fewer = settings(
                    given,
                    max_examples=min(EXAMPLES, given.max_examples),
                    phases=(Phase.explicit, Phase.generate),
                    derandomize=True,
                    database=None,
                    deadline=None,
                )
                setattr(test, held, fewer)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.sender.send(report.nodeid)


def run_tests(source: Path, tests: Iterable[Path], sender: Connection) -> None:
    """Run the tests against the package in `source`; ends its process."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pruner_zero"]:
        del sys.modules[name]
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)
    # Mutants of a module follow within a second, a change that bytecode files do not notice.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--noconftest", f"--rootdir={ROOT}"]
    os._exit(pytest.main([*options, *map(str, tests)], plugins=[Judge(sender)]))


def judged(source: Path, tests: Iterable[Path]) -> tuple[str, str]:
    """The outcome "survived", "killed" or "timeout", and the test that failed."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(source, tests, sender)
    )
    process.start()
    sender.close()
    process.join(10 * LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode == 0:
        return "survived", ""
    if process.exitcode is not None and process.exitcode < 0:
        return "timeout", ""
    try:
        return "killed", receiver.recv().partition("::")[2] if receiver.poll() else "import"
    except EOFError:
        return "killed", "import"


def verdict(source: Path, module: str, explained: bool) -> tuple[str, str]:
    """The verdict of the mirroring tests; of the room's where an unexplained mutant survives."""
    room = ROOT / "tests" / module.rpartition("/")[0]
    mirror = room / f"test_{MODULES[module]}.py"
    outcome, by = judged(source, [mirror])
    if outcome == "survived" and not explained:
        outcome, by = judged(source, sorted({*room.rglob("test_*.py")} - {mirror}))
    return outcome, by


def sample(module: str, text: str, count: int, seed: int) -> list[Mutant]:
    """Mutants drawn by a hash of each fault, so that other changes of the module keep the draw."""

    def place(mutant: Mutant) -> str:
        named = f"{seed} {module} {mutant.function} {mutant.before} {mutant.after}"
        return sha256(named.encode()).hexdigest()

    return sorted(mutants(text), key=place)[:count]


def try_module(
    module: str, source: Path, report: dict[str, Any], given: argparse.Namespace
) -> None:
    """Judge the module's mutants; write each verdict at once."""
    file = source / f"pruner_zero/{module}.py"
    text = file.read_text()
    state = sha256(text.encode()).hexdigest()[:12]
    names = ("function", "before", "after")
    before = {
        tuple(record[name] for name in names): record
        for record in report["mutants"]
        if record["module"] == module and record["state"] == state
    }
    others = [record for record in report["mutants"] if record["module"] != module]
    drawn = sample(module, text, given.count, given.seed)
    records = []
    for number, mutant in enumerate(drawn, 1):
        fault = {name: getattr(mutant, name) for name in names}
        record = before.get(tuple(fault.values()))
        if record is None or (given.again and record["outcome"] == "survived"):
            file.write_text(mutant.source)
            start = time.monotonic()
            record = {"module": module, **fault}
            outcome, by = verdict(source, module, explained=bool(reason(record)))
            seconds = round(time.monotonic() - start, 1)
            record |= {"outcome": outcome, "by": by, "seconds": seconds, "state": state}
            change = " → ".join(shortened(record))
            print(f"{module} {number}/{len(drawn)} {outcome}: {change}", flush=True)
        records.append(record)
        rest = [r for r in before.values() if r not in records]
        report["mutants"] = [*others, *records, *rest]
        write_atomic(RESULT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    report["mutants"] = [*others, *records]
    write_atomic(RESULT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    file.write_text(text)


def reason(record: dict[str, Any]) -> str:
    """Why no test can kill the mutant; "" where no reason is known."""
    return EQUIVALENT.get((f"{record['module']}.{record['function']}", *shortened(record)), "")


def shortened(record: dict[str, Any]) -> tuple[str, str]:
    """The statement before and after; of a long statement, the text around the fault."""
    before, after = record["before"], record["after"]
    start = max(0, _shared(before, after) - 40)
    stop = max(0, _shared(before[::-1], after[::-1]) - 40)

    def cut(text: str) -> str:
        end = len(text) - stop
        return ("…" if start else "") + text[start:end] + ("…" if stop else "")

    return (before, after) if len(before) <= 120 else (cut(before), cut(after))


def _shared(before: str, after: str) -> int:
    """The number of characters that both begin with."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(before), len(after)))


def page(report: dict[str, Any]) -> str:
    """benchmarks/mutation.md."""
    lines = [
        "# Mutation testing",
        "",
        f"Made by `make mutants`: {report['count']} faults a module, drawn with seed "
        f"{report['seed']} from all that `benchmarks/mutants.py` can make there. Killed: a test of "
        "the room fails (a fault without end counts as well). Explained: survived, for a "
        "reason given below: either that nothing else comes out or that the number is a choice. "
        "Open: survived, and a test is missing. Hypothesis tries at most "
        f"{EXAMPLES} examples here.",
        "",
    ]
    rows = []
    total: Counter[str] = Counter()
    for module in MODULES:
        tried = [record for record in report["mutants"] if record["module"] == module]
        lived = [record for record in tried if record["outcome"] == "survived"]
        same = sum(bool(reason(record)) for record in lived)
        row = {"tried": len(tried), "killed": len(tried) - len(lived), "survived": len(lived)}
        row |= {"of those explained": same, "open": len(lived) - same}
        total.update(row)
        rows.append([f"`{module}.py`", *map(str, row.values())])
    rows.append(["together", *map(str, total.values())])
    lines.append(markdown(("module", *total), rows))
    survivors = [
        record
        for record in report["mutants"]
        if record["outcome"] == "survived" and record["module"] in MODULES
    ]
    for title, chosen in (
        ("Explained", [record for record in survivors if reason(record)]),
        ("Open", [record for record in survivors if not reason(record)]),
    ):
        rows = [
            [f"`{r['module']}.{r['function']}`", *map(_code, shortened(r)), reason(r)]
            for r in chosen
        ]
        if rows:
            table = markdown(("where", "statement", "fault", "why"), rows)
            lines += [f"## {title}", "", table]
    return "\n".join([*lines, "[Result file](results/mutation.json).", ""])


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def main() -> None:
    """Judge the mutants without a verdict and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=15, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", choices=MODULES, action="append", help="only this one")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"mutants": []}
    if RESULT.exists():
        report = json.loads(RESULT.read_text())
    report |= {"count": given.count, "seed": given.seed, "versions": provenance()}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shutil.copytree(
            ROOT / "src", source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        compileall.compile_dir(source, quiet=1)
        chosen = given.module or list(MODULES)
        for room in sorted({module.rpartition("/")[0] for module in chosen}):
            outcome, by = judged(source, sorted((ROOT / "tests" / room).glob("test_*.py")))
            if outcome != "survived":
                raise SystemExit(f"tests/{room} fails without a fault, in {by or outcome}: mend it")
        for module in chosen:
            room, _, name = module.rpartition("/")
            for stale in (source / "pruner_zero" / room / "__pycache__").glob(f"{name}.*"):
                stale.unlink()
            try_module(module, source, report, given)
    write_atomic(HERE / "mutation.md", page(report))


if __name__ == "__main__":
    main()
