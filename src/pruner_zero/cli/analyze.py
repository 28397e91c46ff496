"""`pruner-zero analyze` and `report`: the analysis of a search, and results as one page."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table

if TYPE_CHECKING:
    from pruner_zero.analysis.analysis import Analysis


def analyze(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that search wrote.")],
    top: Annotated[
        float, typer.Option(help="The share of the candidates that count as the best.")
    ] = 0.1,
    output: options.OutputFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain RUN: what good metrics share, and whether the rungs agree."""
    from pruner_zero.analysis.analysis import analyze as explain
    from pruner_zero.evolution.study import Study
    from pruner_zero.files import check_file, write_atomic

    if output is not None:
        check_file(output, {"principles"})
    analysis = explain(Study.open(run), top)
    report = analysis.to_json()
    if output is not None:
        write_atomic(output, json.dumps(report, indent=2, allow_nan=False) + "\n")
    if as_json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print(analysis)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that search or prune wrote, files that compare or evaluate wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML file. \\[default: report.html in the first folder]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about RUNs: results, figures, tables, provenance."""
    from pruner_zero.report.page import report as write

    print(write(runs, output))


def _print(analysis: "Analysis") -> None:
    counts = analysis.counts
    share = f" ({100 * counts.distinct / counts.candidates:.0f} %)" if counts.candidates else ""
    print(f"{counts.candidates} candidates, {counts.distinct} of them distinct{share}")
    print(f"rejected: {_listed(counts.rejected)}")
    print(f"never judged: {_listed(counts.avoided)}")
    print(f"last rung reached: {_listed(counts.ended)}")
    if counts.seconds:
        judged = [
            (rung, str(n), f"{seconds:.1f}", f"{seconds / n:.3f}")
            for rung, (n, seconds) in counts.seconds.items()
        ]
        print()
        print_table(("rung", "judged", "seconds", "each"), judged, left=1)
    if analysis.shares:
        print(f"\n{analysis.caption()}")
        header = ("feature", "name", "best", "others", "ratio of shares", "95 %")
        rows = [
            (
                s.feature,
                s.name,
                str(s.best),
                str(s.others),
                f"{s.ratio:.2f}",
                _between(s.low, s.high),
            )
            for s in analysis.shares
        ]
        print_table(header, rows, left=2)
    if analysis.agreements:
        print("\nAgreement of the rungs, over the candidates that have both")
        cells = [row.cells for row in analysis.agreements]
        print_table(analysis.agreements[0].header, cells, left=3)


def _between(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:.2f} … {high:.2f}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
