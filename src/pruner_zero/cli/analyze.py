"""`pruner-zero analyze`: the analysis of a search."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.tables import print_table

if TYPE_CHECKING:
    from pruner_zero.analysis import Analysis, Principle


def analyze(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="The folder that search wrote, or those of several searches."
        ),
    ],
    top: Annotated[
        float, typer.Option(help="The share of the candidates that count as the best.")
    ] = 0.1,
    output: options.OutputFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain RUN: what good metrics share, and whether the rungs agree.

    Of several searches, of one model or of more, it tells which principles hold across them.
    """
    from pruner_zero.analysis import across
    from pruner_zero.analysis import analyze as explain
    from pruner_zero.analysis.analysis import plain
    from pruner_zero.errors import PrunerZeroError
    from pruner_zero.evolution import Study
    from pruner_zero.files import check_file, write_atomic

    if output is not None:
        check_file(output)
    if len({run.resolve() for run in runs}) < len(runs):
        raise PrunerZeroError("a search is named twice: name every RUN once")
    analyses = [explain(Study.open(run), top) for run in runs]
    analysis = analyses[0]
    together = across([each.principles for each in analyses]) if len(runs) > 1 else []
    report = analysis.to_json()
    if together:
        named = zip(map(str, runs), analyses, strict=True)
        report = {
            "principles": plain([asdict(test) for test in together]),
            "runs": {name: each.to_json() for name, each in named},
        }
    if output is not None:
        write_atomic(output, json.dumps(report, indent=2, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps(report, allow_nan=False))
        return
    if together:
        _print_across(runs, analyses, together)
        return
    _print_counts(analysis)
    _print_shares(analysis)
    _print_agreements(analysis)
    _print_principles(analysis)


def _print_counts(analysis: "Analysis") -> None:
    counts = analysis.counts
    print(f"{counts.candidates} candidates, {counts.distinct} with distinct masks", end="")
    share = 100 * counts.distinct / max(1, counts.candidates)
    print(f" ({share:.0f} %)" if counts.candidates else "")
    print(f"rejected: {_listed(counts.rejected)}")
    print(f"never judged: {_listed(counts.avoided)}")
    print(f"duplicates: {counts.saved}")
    print(f"last rung reached: {_listed(counts.ended)}")
    if counts.distinct:
        print(f"{counts.seconds / counts.distinct:.2f} s for each distinct mask")
    if counts.rung_seconds:
        rows = [
            (rung, str(n), f"{seconds:.1f}", f"{seconds / n:.3f}")
            for rung, (n, seconds) in counts.rung_seconds.items()
        ]
        print()
        print_table(("rung", "judged", "seconds", "each"), rows, left=1)


def _print_shares(analysis: "Analysis") -> None:
    if not analysis.shares:
        return
    print(f"\n{analysis.caption()}")
    rows = [
        (share.kind, share.name, str(share.best), str(share.everyone), *share.ratio.cells)
        for share in analysis.shares
    ]
    print_table(("kind", "name", "best", "all", "ratio of shares", "95 %"), rows, left=2)


def _print_agreements(analysis: "Analysis") -> None:
    if analysis.agreements:
        print("\nAgreement of the rungs, over the candidates that have both")
        cells = [row.cells for row in analysis.agreements]
        print_table(analysis.agreements[0].header, cells, left=3)


def _print_tests(tests: Sequence["Principle"], value: str, counted: str) -> None:
    """The table of the principles, and what each was measured by."""
    rows = [
        (test.statement, test.verdict, *test.estimate.cells, f"{test.neutral:g}", str(test.n))
        for test in tests
    ]
    print_table(("principle", "verdict", value, "95 %", "no effect", counted), rows, left=2)
    for number, test in enumerate(tests, 1):
        remark = f" ({test.remark})" if test.remark else ""
        print(f"{number}. {test.statement}: {test.measure}{remark}")


def _print_principles(analysis: "Analysis") -> None:
    print(f"\nPrinciples of {analysis.principles[0].source}")
    _print_tests(analysis.principles, "measure", "n")
    if analysis.shares:
        print(
            "The candidates of an evolution are related: the intervals, which take them as "
            "independent, are too narrow."
        )


def _print_across(
    runs: Sequence[Path], analyses: Sequence["Analysis"], together: Sequence["Principle"]
) -> None:
    print(f"Principles of {together[0].source}, over {len(runs)} searches: medians")
    _print_tests(together, "median", "runs")
    print()
    estimates = [
        (str(run), *(test.estimate.cells[0] for test in analysis.principles))
        for run, analysis in zip(runs, analyses, strict=True)
    ]
    print_table(("search", *map(str, range(1, 1 + len(together)))), estimates, left=1)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
