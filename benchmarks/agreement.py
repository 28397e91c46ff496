"""Whether a search ranks its best skeletons as many other windows do.

    python benchmarks/agreement.py runs/duel/0.5-6-minutes-default-2 \
        --calibration wiki.valid.raw --text wiki.test.raw

The run is one of duel.py. Each skeleton (a canonical form without exponents, with its comparison
group) is ranked by its best candidate: the loss on all search windows, or the loss on a few windows
plus the mean difference of the two. The best candidates of the 20 best skeletons prune the model,
and their losses are measured on windows of another text, which no search has read. Writes
benchmarks/results/agreement.json as it goes, and agreement.md.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from duel import RESULTS, USUAL, Judge
from pruner_zero.analysis.statistics import rank_correlation
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.candidate import Kind, excess
from pruner_zero.evolution.study import Study
from pruner_zero.files import write_json
from recorded import Table
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "agreement.json"
SKELETONS = 20


def main() -> None:
    """Measure the missing candidates and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="the folder of a search by duel.py")
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--text", help="WikiText-2 test, raw")
    parser.add_argument("--windows", type=int, default=24, help="of the 48 of duel.py")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(RESULTS / "0.5.table.jsonl", given.run.parent / "0.5.added.jsonl")
    judge = Judge(
        argparse.Namespace(
            **vars(given), model=USUAL, minutes=12, runs=given.run.parent, windows_eval=48
        ),
        {"sparsity": 0.5},
        table,
    )
    measured = {}
    if FILE.exists():
        measured = {(row["expression"], row["scope"]): row for row in json.loads(FILE.read_text())}
    rows, changed = [], False
    for known, record in ranked(Study.open(given.run).records)[:SKELETONS]:
        candidate = record.candidate
        expression, scope = str(candidate.expression), candidate.scope
        row = {"expression": expression, "scope": scope, "rung": record.evaluation.rung}
        losses = table.find(expression, scope, "test")
        losses = losses or measured.get((expression, scope), {}).get("losses", [])
        if len(losses) < given.windows:
            evaluator, test = judge.evaluator_and_windows
            losses = evaluator.masked.losses(
                record.candidate.expression, scope, test[: given.windows]
            )
            # Until then the file holds more than `rows`.
            changed = True
        rows.append(row | {"known": known, "losses": losses[: given.windows]})
        if changed:
            write_json(FILE, rows)
    write_json(FILE, rows)
    write_page()


def ranked(records: Sequence[Record]) -> list[tuple[float, Record]]:
    """The best candidate of every skeleton that ran on windows, best first, after its loss."""
    judged = [r for r in records if r.evaluation.counts and "few" in r.evaluation.results]
    difference = statistics.mean(excess(record.evaluation.results for record in judged))
    best: dict[Kind, tuple[float, Record]] = {}
    for record in judged:
        results = record.evaluation.results
        known = results.get("all", results["few"] + difference)
        kind = record.candidate.kind
        if kind not in best or known < best[kind][0]:
            best[kind] = known, record
    return sorted(best.values(), key=lambda pair: pair[0])


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the mean losses differ by less than two standard errors of the paired difference."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return abs(statistics.mean(differences)) < 2 * error


def write_page() -> None:
    """Write agreement.md from the result file."""
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())
    known = [row["known"] for row in rows]
    losses = [statistics.mean(row["losses"]) for row in rows]
    order = [sorted(losses).index(loss) + 1 for loss in losses]
    header = ["place", "loss known to the search", "windows", "loss on test", "place", "metric"]
    table = [
        [
            str(place),
            f"{row['known']:.3f}",
            "all" if row["rung"] == 3 else "few",
            f"{loss:.3f}",
            str(after),
            f"`{row['expression']} @{row['scope']}`",
        ]
        for place, (row, loss, after) in enumerate(zip(rows, losses, order, strict=True), 1)
    ]
    lines = [
        "| the order of | Kendall's τ | 95 % | of which two differ by less than two errors |",
        "|---|---|---|---|",
    ]
    for count in (len(rows), len(rows) // 2):
        estimate = rank_correlation(known[:count], losses[:count])
        pairs = [*combinations([row["losses"] for row in rows[:count]], 2)]
        close = sum(_close(first, second) for first, second in pairs)
        cells = f"the best {count}", *estimate.cells, f"{close} of {len(pairs)} pairs"
        lines.append(f"| {' | '.join(cells)} |")
    notes = HERE / "results" / "agreement-notes.md"
    (HERE / "agreement.md").write_text(
        "# Whether the search ranks like many windows\n\n"
        "Made by `python benchmarks/agreement.py runs/duel/0.5-6-minutes-default-2 --calibration"
        " wiki.valid.raw --text wiki.test.raw` after that run of [duel.md](duel.md): the best"
        f" candidates of its {len(rows)} best skeletons, on SmolLM2-135M, ranked by what the search"
        " knows of their loss on all of its windows (measured, or the loss on a few windows plus"
        " the mean difference of those that have both), and by their loss on"
        f" {len(rows[0]['losses'])} windows of WikiText-2 test, which no search has read"
        f" ([result file](results/{FILE.name})).\n\n"
        + "\n".join(lines)
        + "\n\n"
        + markdown(header, table)
        + (f"\n{notes.read_text()}" if notes.exists() else "")
    )


if __name__ == "__main__":
    main()
