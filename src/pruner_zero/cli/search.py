"""`pruner-zero search`: find the metric that suits a model at a sparsity."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pruner_zero.cli import options
from pruner_zero.cli.from_settings import with_settings
from pruner_zero.cli.progress import progress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings import SearchOptions

if TYPE_CHECKING:
    from pruner_zero.evolution.run import Status


@with_settings(SearchOptions)
def search(
    settings: dict[str, Any],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the run.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder.", show_default=False)
    ] = None,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for the best metric for MODEL. After an interruption, `--resume RUN` continues it."""
    from pruner_zero.evolution.run import search as run

    if resume is not None and config is not None:
        raise PrunerZeroError("--resume reads the settings of its run: leave out --config")
    if resume is not None:
        settings = {**_stored(resume), **settings}
        output = resume
    if output is None:
        raise PrunerZeroError("give --output, or --resume with the folder of a run")
    display = Display(quiet)
    with display:
        result = run(
            output=output,
            cache=cache,
            config=config,
            progress=progress(quiet),
            observer=display,
            **settings,
        )
    if as_json:
        summary = {
            "output": str(result.path),
            "stopped": result.stopped,
            "candidates": len(result.records),
            "hall_of_fame": result.hall_of_fame.to_json(),
            "final": result.final_race.to_rows(),
        }
        print(json.dumps(summary))
        return
    print(result.caption())
    for row in result.hall_of_fame.to_json():
        mark = "best" if row["best"] else "knee" if row["knee"] else ""
        print(
            f"{row['complexity']:>3} {row['perplexity']:>10.2f}  "
            f"{row['expression']} @{row['scope']} {mark}"
        )
    if result.final_race.winner:
        print(result.final_race.caption())
    if result.stopped == "interrupted":
        print(f"to continue: pruner-zero search --resume {result.path}")
        raise typer.Exit(130)
    chosen = {name.replace("_", "-"): value for name, value in result.prune_options.items()}
    words = " ".join(f"--{name} {value}" for name, value in chosen.items())
    print(f"prune with it: pruner-zero prune {result.settings['model']} {words} …")


class Display:
    """Shows the search after each batch: a live table on a terminal, a line elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = Live(console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self.live.is_started:
            self.live.stop()

    def __call__(self, status: "Status") -> None:
        """Show one status."""
        if self.quiet:
            return
        if self.live is None:
            print(_line(status), file=sys.stderr, flush=True)
            return
        if not self.live.is_started:
            self.live.start()
        self.live.update(_table(status), refresh=True)


def _line(status: "Status") -> str:
    rejected, cheap, few, full = status.by_rung
    best = status.hall_of_fame.best
    text = "none"
    if best:
        candidate = best.candidate
        text = f"{best.evaluation.perplexity:.2f} {candidate.expression} @{candidate.scope}"
    return (
        f"batch {status.batch}: {status.elapsed / 60:.1f} min of {status.budget}, "
        f"{len(status.records)} candidates ({status.per_minute:.0f}/min; rejected {rejected}, "
        f"closed form {cheap}, few windows {few}, all windows {full}; "
        f"saved {sum(status.saved.values())}), best {text}"
    )


def _table(status: "Status") -> Table:
    table = Table("complexity", "perplexity", "metric", "scope", title=_line(status))
    for row in status.hall_of_fame.to_json():
        style = "bold" if row["best"] else "cyan" if row["knee"] else ""
        cells = (str(row["complexity"]), f"{row['perplexity']:.2f}", row["expression"])
        table.add_row(*cells, row["scope"], style=style)
    return table


def _stored(folder: Path) -> dict[str, Any]:
    try:
        stored = dict[str, Any](json.loads((folder / "run.json").read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PrunerZeroError(f"{folder} holds no run to resume: give the folder of one") from error
    return stored
