"""Mutation testing of the expression language and of sparsity: does a test fail for each fault?

    make mutants

Draws faults of the modules below (`mutants.py`), and runs the tests that mirror the module
against each in a process of its own; only where none fails, all tests of the room. Every verdict
is written at once to benchmarks/results/mutation.json, so a run that was cut goes on; verdicts of
a module that has changed are taken anew, those of survivors with --again. mutation.md is written
from it. Hypothesis tries at most 60 examples, always the same ones.
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

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULT = HERE / "results/mutation.json"

# A module → the tests that mirror it.
MODULES = {
    "metric/canonical/form": "form",
    "metric/canonical/normal": "form",
    "metric/canonical/facts": "form",
    "metric/evaluate": "evaluate",
    "metric/operator": "operators",
    "metric/operators": "operators",
    "metric/canonical/simplify": "simplify",
    "metric/expression": "expression",
    "sparsity/selection": "selection",
    "sparsity/hessian": "hessian",
    "sparsity/steps/sweep": "sweep",
    "sparsity/steps/least_squares": "least_squares",
    "sparsity/steps/swaps": "swaps",
    "sparsity/steps/exact_swaps": "exact_swaps",
    "sparsity/steps/registry": "registry",
    "sparsity/threshold": "threshold",
    "sparsity/allocation": "allocation",
    "sparsity/layer_error": "layer_error",
}
EXAMPLES = 60
# Processor time a mutant may take, so that a busy machine makes nothing a timeout.
LIMIT_SECONDS = 30
LIMIT_BYTES = 4 * 2**30


class Judge:
    """Runs pytest on fewer examples and tells which test failed first."""

    def __init__(self, told: Connection) -> None:
        self.told = told

    def pytest_configure(self, config: pytest.Config) -> None:
        # What tests/conftest.py says too; it is left out, since it imports transformers.
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
            self.told.send(report.nodeid)


def run_tests(source: Path, tests: Iterable[Path], told: Connection) -> None:
    """In a process of its own: the tests against the package in `source`."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pruner_zero"]:
        del sys.modules[name]
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)
    # A module is written anew for each mutant within one second, which bytecode files miss.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--noconftest", f"--rootdir={ROOT}"]
    os._exit(pytest.main([*options, *map(str, tests)], plugins=[Judge(told)]))


def judged(source: Path, tests: Iterable[Path]) -> tuple[str, str]:
    """survived, killed or timeout, and the test that failed."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=run_tests, args=(source, tests, theirs)
    )
    process.start()
    theirs.close()
    process.join(10 * LIMIT_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode == 0:
        return "survived", ""
    if process.exitcode is not None and process.exitcode < 0:
        return "timeout", ""
    try:
        return "killed", ours.recv().partition("::")[2] if ours.poll() else "import"
    except EOFError:
        return "killed", "import"


def verdict(source: Path, module: str, explained: bool) -> tuple[str, str]:
    """The mirror's verdict; where that finds nothing and we know no reason, the room's."""
    room = ROOT / "tests" / module.rpartition("/")[0]
    mirror = room / f"test_{MODULES[module]}.py"
    outcome, by = judged(source, [mirror])
    if outcome == "survived" and not explained:
        outcome, by = judged(source, sorted({*room.glob("test_*.py")} - {mirror}))
    return outcome, by


def sample(module: str, text: str, count: int, seed: int) -> list[Mutant]:
    """Drawn by what each fault is, so that a change elsewhere in the module keeps the others."""

    def place(one: Mutant) -> str:
        named = f"{seed} {module} {one.function} {one.before} {one.after}"
        return sha256(named.encode()).hexdigest()

    return sorted(mutants(text), key=place)[:count]


def try_module(module: str, source: Path, known: dict[str, Any], given: argparse.Namespace) -> None:
    """Judge the module's mutants; each verdict is on disk at once."""
    file = source / f"pruner_zero/{module}.py"
    text = file.read_text()
    state = sha256(text.encode()).hexdigest()[:12]
    before = {
        (one["function"], one["before"], one["after"]): one
        for one in known["mutants"]
        if one["module"] == module and one["state"] == state
    }
    others = [one for one in known["mutants"] if one["module"] != module]
    drawn = sample(module, text, given.count, given.seed)
    records = []
    for number, one in enumerate(drawn, 1):
        record = before.get((one.function, one.before, one.after))
        if record is None or (given.again and record["outcome"] == "survived"):
            file.write_text(one.source)
            start = time.monotonic()
            record = {
                "module": module,
                "function": one.function,
                "before": one.before,
                "after": one.after,
            }
            outcome, by = verdict(source, module, explained=bool(reason(record)))
            seconds = round(time.monotonic() - start, 1)
            record |= {"outcome": outcome, "by": by, "seconds": seconds, "state": state}
            fault = " → ".join(shortened(record))
            print(f"{module} {number}/{len(drawn)} {outcome}: {fault}")
            sys.stdout.flush()
        records.append(record)
        rest = [r for r in before.values() if r not in records]
        known["mutants"] = [*others, *records, *rest]
        write_atomic(RESULT, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    known["mutants"] = [*others, *records]
    write_atomic(RESULT, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    file.write_text(text)


def reason(one: dict[str, Any]) -> str:
    """Why no test can kill it, if so."""
    return EQUIVALENT.get((f"{one['module']}.{one['function']}", *shortened(one)), "")


def shortened(one: dict[str, Any]) -> tuple[str, str]:
    """The statement before and after, of a long one only the neighbourhood of the fault."""
    before, after = one["before"], one["after"]
    start = max(0, _shared(before, after) - 40)
    stop = max(0, _shared(before[::-1], after[::-1]) - 40)

    def cut(text: str) -> str:
        end = len(text) - stop
        return ("…" if start else "") + text[start:end] + ("…" if stop else "")

    return (before, after) if len(before) <= 120 else (cut(before), cut(after))


def _shared(one: str, other: str) -> int:
    """How many characters they begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def page(known: dict[str, Any]) -> str:
    """benchmarks/mutation.md."""
    lines = [
        "# Mutation testing",
        "",
        f"Made by `make mutants`: {known['count']} faults a module, drawn with seed "
        f"{known['seed']} from all that `benchmarks/mutants.py` can make there. Killed: a test of "
        "the room fails (a fault without end counts as well). Explained: survived, for a "
        "reason given below: either that nothing else comes out or that the number is a choice. "
        "Open: survived, and a test is missing. Hypothesis tries at most "
        f"{EXAMPLES} examples here.",
        "",
        "| module | tried | killed | survived | of those explained | open |",
        "|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for module in MODULES:
        own = [one for one in known["mutants"] if one["module"] == module]
        lived = [one for one in own if one["outcome"] == "survived"]
        same = sum(bool(reason(one)) for one in lived)
        row = {"tried": len(own), "killed": len(own) - len(lived), "survived": len(lived)}
        row |= {"explained": same, "open": len(lived) - same}
        total.update(row)
        lines.append(f"| `{module}.py` | " + " | ".join(map(str, row.values())) + " |")
    lines.append("| together | " + " | ".join(map(str, total.values())) + " |")
    survivors = [one for one in known["mutants"] if one["outcome"] == "survived"]
    for title, chosen in (
        ("Explained", [one for one in survivors if reason(one)]),
        ("Open", [one for one in survivors if not reason(one)]),
    ):
        if not chosen:
            continue
        lines += ["", f"## {title}", "", "| where | statement | fault | why |", "|---|---|---|---|"]
        for one in chosen:
            where = f"`{one['module']}.{one['function']}`"
            cells = (where, *map(_code, shortened(one)), reason(one))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "[Result file](results/mutation.json).", ""])


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def main() -> None:
    """Judge what is not judged yet and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=15, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", choices=MODULES, action="append", help="only this one")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = {"mutants": []}
    if RESULT.exists():
        known = json.loads(RESULT.read_text())
    known |= {"count": given.count, "seed": given.seed, "versions": provenance()}
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
            try_module(module, source, known, given)
    write_atomic(HERE / "mutation.md", page(known))


if __name__ == "__main__":
    main()
