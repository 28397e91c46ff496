"""`pruner-zero analyze`: what a search teaches."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.tables import print_table
from pruner_zero.errors import PrunerZeroError

if TYPE_CHECKING:
    from pruner_zero.analysis.analysis import Analysis
    from pruner_zero.analysis.lineage import Ancestor
    from pruner_zero.analysis.statistics import Estimate


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that search wrote.")],
    top: Annotated[float, typer.Option(help="The share of candidates that count as good.")] = 0.1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for all of it.", show_default=False),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain RUN: what good metrics share, whether the cheap rungs agree, the best one's past."""
    from pruner_zero.analysis.analysis import analyze as explain
    from pruner_zero.evolution.archive import SearchJournal
    from pruner_zero.files import check_writable, write_atomic

    if output is not None:
        check_writable(output)
    if not run.is_dir():
        raise PrunerZeroError(f"{run} holds no search: give the folder that search wrote")
    journal = SearchJournal.of(run)
    found = explain(journal.records, top, journal.seconds, journal.avoided)
    if output is not None:
        write_atomic(output, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
        return
    _print_counts(found)
    _print_shares(found)
    _print_correlations(found)
    _print_agreements(found)
    _print_principles(found)
    _print_lineage(found)


def _print_counts(found: "Analysis") -> None:
    counts = found.counts
    print(f"{counts.candidates} candidates, {counts.distinct} with a mask of their own", end="")
    print(f" ({counts.distinct_per_100:.0f} of 100)" if counts.candidates else "")
    print(f"rejected: {_listed(counts.rejected)}")
    print(f"never asked: {_listed(counts.avoided)}")
    print(f"duplicates saved: {_listed(counts.saved)}")
    print(f"dearest rung reached: {_listed(counts.ended)}")
    if counts.distinct:
        print(f"{counts.seconds_per_distinct:.2f} s for each with a mask of its own")
    if counts.rung_seconds:
        rows = [
            (rung, str(n), f"{seconds:.1f}", f"{seconds / n:.3f}")
            for rung, (n, seconds) in counts.rung_seconds.items()
        ]
        print()
        print_table(("rung", "judged", "seconds", "each"), rows, left=1)


def _print_shares(found: "Analysis") -> None:
    if not found.shares:
        return
    where = f"of those judged on '{found.best_rung}'" if found.best_rung else "of all"
    everyone = found.counts.distinct
    print(
        f"\nThe best {found.best_count} ({found.top:.0%} {where}) beside all {everyone}: "
        "counts, quotient of shares, 95 % interval, hypergeometric p, Holm's p for the table"
    )
    rows = [
        (
            *(one.kind, one.name, str(one.best), str(one.everyone)),
            *(*_cells(one.ratio), f"{one.p:.3g}", f"{one.p_adjusted:.3g}"),
        )
        for one in found.shares
    ]
    header = ("kind", "name", "best", "all", "ratio", "95 %", "p", "adjusted")
    print_table(header, rows, left=2)


def _print_correlations(found: "Analysis") -> None:
    for rung in dict.fromkeys(one.rung for one in found.correlations):
        print(f"\nFeatures and the value on '{rung}' (positive: the more of it, the worse)")
        rows = [
            (one.feature, str(one.n), *_cells(one.kendall), *_cells(one.spearman))
            for one in found.correlations
            if one.rung == rung
        ]
        print_table(("feature", "n", "Kendall", "95 %", "Spearman", "95 %"), rows, left=1)


def _print_agreements(found: "Analysis") -> None:
    if not found.agreements:
        return
    print("\nAgreement of the rungs, over the candidates that have both")
    rows = [
        (one.cheap, one.dear, one.among, str(one.n), *_cells(one.kendall), *_cells(one.spearman))
        for one in found.agreements
    ]
    header = ("cheap", "dear", "among", "n", "Kendall", "95 %", "Spearman", "95 %")
    print_table(header, rows, left=3)


def _print_principles(found: "Analysis") -> None:
    print(f"\nPrinciples of {found.principles[0].source}")
    rows = [
        (one.statement, one.verdict, *_cells(one.estimate), f"{one.neutral:g}", str(one.n))
        for one in found.principles
    ]
    header = ("principle", "verdict", "measure", "95 %", "no effect", "n")
    print_table(header, rows, left=2)
    for one in found.principles:
        remark = f" ({one.remark})" if one.remark else ""
        print(f"{one.statement}: {one.measure}{remark}")
    if found.shares:
        print(
            "intervals and p take candidates as independent; an evolution's are relatives, "
            "so they promise too much"
        )


def _print_lineage(found: "Analysis") -> None:
    if found.lineage is None:
        print("\nno metric that works was found")
        return
    past = found.lineage
    print(
        f"\nWhere the best comes from: {past.ancestors} ancestors in {past.generations} "
        f"generations, {len(past.roots)} of them without parents"
        if past.ancestors
        else "\nThe best has no parents"
    )
    for one in past.tree:
        print("  " * one.generation + _line(one))


def _line(one: "Ancestor") -> str:
    from pruner_zero.evolution.evaluator import RUNGS

    value = f"{one.value:.4f} on '{RUNGS[one.rung]}'" if one.rung else "rejected"
    remarks = [
        f"the mask of {one.same_as}" if one.same_as is not None else "",
        "parents elsewhere in this list" if one.repeated else "",
        f"{one.older} parents not listed" if one.older else "",
    ]
    tail = "".join(f"; {remark}" for remark in remarks if remark)
    return f"{one.number} {one.operation}: {one.expression} @{one.scope}, {value}{tail}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _cells(estimate: "Estimate") -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "", ""
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}", ""
    return f"{estimate.value:.2f}", f"{estimate.low:.2f} … {estimate.high:.2f}"
