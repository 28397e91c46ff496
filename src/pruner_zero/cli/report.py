"""`pruner-zero report`: results as one page."""

from pathlib import Path
from typing import Annotated

import typer


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
