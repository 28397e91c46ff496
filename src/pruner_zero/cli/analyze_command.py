"""`pruner-zero analyze` and `report`: the analysis of a search, and results as one page."""

import json
from collections.abc import Mapping
from math import isnan
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
            help="Folders that search, prune or recover wrote, files that compare or evaluate "
            "wrote.",
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
        print(f"\n{analysis!r}")
    if analysis.agreements:
        print("\nAgreement of the rungs, over the candidates that have both")
        cells = [
            (
                a.cheap,
                a.expensive,
                a.among,
                str(a.n),
                "" if isnan(a.kendall) else f"{a.kendall:.2f}",
            )
            for a in analysis.agreements
        ]
        print_table(("cheap", "expensive", "among", "n", "Kendall's τ"), cells, left=3)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
