"""`pruner-zero search`: find the metric that suits a model at a sparsity."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pruner_zero.cli import options
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.read_settings import of_removed
from pruner_zero.settings.search_settings import SearchSettings

if TYPE_CHECKING:
    from pruner_zero.evolution.run import Status
    from pruner_zero.evolution.several_models import Models
    from pruner_zero.evolution.study import Study

# Either of these is the budget of a search.
_BUDGET = {"minutes", "evaluations"}


@options.with_settings(SearchSettings)
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
) -> None:
    """Search for the best metric for MODEL, or for several models at once.

    After an interruption, `--resume RUN` continues it.
    """
    from pruner_zero.evolution.run import search as run

    if resume is not None and config is not None:
        raise PrunerZeroError("--resume reads the settings of its run: leave out --config")
    if resume is not None:
        if output is not None and output.resolve() != resume.resolve():
            raise PrunerZeroError(f"--resume {resume} writes to that folder: leave out --output")
        stored = _stored(resume)
        if settings.keys() & _BUDGET:
            stored = {name: value for name, value in stored.items() if name not in _BUDGET}
        settings, output = {**stored, **settings}, resume
    if output is None:
        raise PrunerZeroError("give --output, or --resume with the folder of a run")
    display = Display()
    with display:
        result = run(output=output, cache=cache, config=config, observer=display, **settings)
    if as_json:
        summary = {
            "output": str(result.path),
            "stopped": result.stopped,
            "candidates": len(result.records),
            "hall_of_fame": result.hall_of_fame.to_rows(),
            "final": result.final_race.to_rows(),
        }
        print(json.dumps(summary))
    else:
        _print(result)
    if result.interrupted:
        raise typer.Exit(130)
    # One line and code 2 where no metric works.
    _ = result.best


def _print(study: "Study") -> None:
    """The metrics that the search found, and the command that continues from here."""
    from pruner_zero.report.commands import prune_with

    print(study.caption())
    for row in study.hall_of_fame.to_rows():
        mark = "best" if row["best"] else "knee" if row["knee"] else ""
        print(
            f"{row['complexity']:>3} {_loss(row, study.models):>10}  "
            f"{row['expression']} @{row['scope']} {mark}"
        )
    if study.final_race.winner:
        print(study.final_race.caption())
    if study.interrupted:
        print(f"to continue: {shlex.join(['pruner-zero', 'search', '--resume', str(study.path)])}")
    elif study.models and (study.loss or 0) >= 0:
        print(
            "no metric is better than Wanda's over all models: give a larger budget, or prune with "
            "--metric wanda"
        )
    elif study.hall_of_fame.best:
        print(f"prune with it: {prune_with(study)}")


class Display:
    """Shows the search after each batch: a live table on a terminal, a line elsewhere."""

    def __init__(self) -> None:
        self.live = Live(console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self.live.is_started:
            self.live.stop()

    def __call__(self, status: "Status") -> None:
        """Show one status."""
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
        row = next(row for row in status.hall_of_fame.to_rows() if row["best"])
        loss = _loss(row, status.hall_of_fame.models)
        text = f"{loss} {row['expression']} @{row['scope']}".lstrip()
    return (
        f"batch {status.batch}: {status.elapsed / 60:.1f} min of {status.budget}, "
        f"{len(status.records)} candidates ({status.per_minute:.0f}/min; rejected {rejected}, "
        f"closed form {cheap}, few windows {few}, all windows {full}; "
        f"saved {status.saved}), best {text}"
    )


def _table(status: "Status") -> Table:
    models = status.hall_of_fame.models
    measured = "beside Wanda" if models else "perplexity"
    table = Table("complexity", measured, "metric", "scope", title=_line(status))
    for row in status.hall_of_fame.to_rows():
        style = "bold" if row["best"] else "cyan" if row["knee"] else ""
        cells = (str(row["complexity"]), _loss(row, models), row["expression"])
        table.add_row(*cells, row["scope"], style=style)
    return table


def _loss(row: dict[str, Any], models: "Models | None") -> str:
    """The perplexity, or of several models the part of Wanda's divergence more or less."""
    if models:
        return f"{row['loss']:+.1%}" if None not in map(row.get, models.names) else ""
    return "" if row["perplexity"] is None else f"{row['perplexity']:.2f}"


def _stored(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises PrunerZeroError where there are none."""
    try:
        stored = dict[str, Any](json.loads((folder / "run.json").read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PrunerZeroError(f"{folder} holds no run to resume: give the folder of one") from error
    if surplus := sorted(stored.keys() - SearchSettings.model_fields.keys()):
        why = of_removed(surplus[0]) or f"it has a setting '{surplus[0]}'"
        raise PrunerZeroError(f"{folder}/run.json cannot be continued: {why}")
    return stored
