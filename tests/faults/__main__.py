"""The fault catalogue: `python -m tests.faults [--few] [--seed N] [PYTEST ARGUMENTS]`.

Runs every test that carries the marker `fault`, the slow ones too unless `--few`, with random
moments by the seed, and writes docs/faults.md: one row a fault, with the cases made and failed.
"""

import argparse
import os
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import SEED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
HEAD = """# Faults

Written by `python -m tests.faults {arguments}`; not to be edited by hand.

On the CPU. Every fault is real: processes are killed, the system refuses writes, bits are flipped.
*Failed*: the cases without the required behaviour.

| fault | required behaviour | tried | failed |
|---|---|---:|---:|
"""


@dataclass
class Row:
    """One fault: the required behaviour, the number of cases, and of those without it."""

    holds: str = ""
    tried: int = 0
    failed: int = 0


class Catalogue:
    """A pytest plug-in that counts by fault."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.faults: dict[str, str] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Learn which fault a test is about."""
        for mark in item.iter_markers("fault"):
            name, holds = (*mark.args, "")[:2]
            self.faults[item.nodeid] = name
            row = self.rows.setdefault(name, Row())
            row.holds = row.holds or holds

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test as often as it made its fault, and once where it says nothing."""
        row = self.rows[self.faults[report.nodeid]]
        if report.failed:
            row.failed += 1
        if report.failed or (report.when == "call" and report.passed):
            row.tried += int(str(dict(report.user_properties).get("tried", 1)))

    def page(self, arguments: Sequence[str]) -> str:
        """The catalogue in Markdown."""
        rows = {name: row for name, row in sorted(self.rows.items()) if row.tried}
        lines = [f"| {name} | {r.holds} | {r.tried} | {r.failed} |" for name, r in rows.items()]
        tried, failed = (sum(getattr(r, n) for r in rows.values()) for n in ("tried", "failed"))
        head = HEAD.format(arguments=shlex.join(arguments))
        return head + "\n".join([*lines, "", f"{tried} tried, {failed} failed", ""])


def main() -> int:
    """Run the catalogue; 0 where no case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--few", action="store_true", help="leave out the slow ones")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    given, rest = parser.parse_known_args()
    os.environ[SEED] = given.seed
    print(f"seed {given.seed}: --seed {given.seed} repeats these faults", flush=True)
    catalogue = Catalogue()
    chosen = "fault and not slow" if given.few else "fault"
    where = (
        [] if any(Path(name.split("::")[0]).exists() for name in rest) else [str(ROOT / "tests")]
    )
    code = pytest.main(
        ["-q", "-m", chosen, f"--rootdir={ROOT}", *rest, *where], plugins=[catalogue]
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(f"not all faults were made: {PAGE.relative_to(ROOT)} stays as it is")
        return int(code)
    few = ["--few"] if given.few else []
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(catalogue.page([*few, "--seed", given.seed, *rest]))
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.read_text().splitlines()[-1]}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
