"""`pruner-zero search`: evolve the metric that suits a model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress
from pruner_zero.errors import PrunerZeroError

if TYPE_CHECKING:
    from pruner_zero.evolution.run import Status


def search(
    model: Annotated[str | None, typer.Argument(help=options.MODEL, show_default=False)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the run.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder.", show_default=False)
    ] = None,
    calibration: options.Calibration = None,
    search_text: Annotated[
        str | None,
        typer.Option(
            help=f"Text that candidates are judged on. {options.TEXT} "
            "[default: the second half of the calibration text]",
            show_default=False,
        ),
    ] = None,
    sparsity: options.Sparsity = None,
    pattern: options.PatternText = None,
    scope: Annotated[
        str | None,
        typer.Option(help="row, block, matrix, global, or any. [default: any]"),
    ] = None,
    update: Annotated[
        str | None,
        typer.Option(
            help="Judge candidates after an update of the weights that stay: none; obs, "
            "SparseGPT's sweep; exact, least squares. [default: none]"
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes.")] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Stop after so many distinct candidates.")
    ] = None,
    target_loss: Annotated[float | None, typer.Option(help="Stop at this loss, in nats.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many batches without a better metric.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="default, published or random. [default: default]")
    ] = None,
    seed_metrics: Annotated[
        list[str] | None,
        typer.Option(help="Plant a known metric or expression; repeatable. [default: none]"),
    ] = None,
    windows: options.Windows = None,
    search_windows: Annotated[
        int | None, typer.Option(help="Windows that candidates are judged on. [default: 12]")
    ] = None,
    seqlen: options.Seqlen = None,
    seed: options.Seed = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Workers. [default: one a core, of this machine or of the Ray cluster]"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker. [default: 1]")
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="serial, processes or ray. [default: processes for several workers]"),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Seconds that one judgement of a candidate may take. [default: 600]",
            show_default=False,
        ),
    ] = None,
    ray_address: options.RayAddress = None,
    ray_resources: options.RayResources = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dtype: options.DtypeText = None,
    device: options.DeviceText = None,
    gradient_seqlen: options.GradientSeqlen = None,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Evolve a metric for MODEL. Interrupted, `--resume RUN` goes on where it stopped."""
    from pruner_zero.evolution.run import prune_options
    from pruner_zero.evolution.run import search as run

    given: dict[str, Any] = {
        "sparsity": sparsity,
        "pattern": pattern,
        "scope": scope,
        "update": update,
        "minutes": minutes,
        "evaluations": evaluations,
        "target_loss": target_loss,
        "patience": patience,
        "algorithm": algorithm,
        "seed_metrics": seed_metrics,
        "windows": windows,
        "search_windows": search_windows,
        "seqlen": seqlen,
        "seed": seed,
        "workers": workers,
        "threads": threads,
        "executor": executor,
        "time_limit": time_limit,
        "ray_address": ray_address,
        "ray_resources": ray_resources,
        "include": include,
        "exclude": exclude,
        "dtype": dtype,
        "device": device,
        "gradient_seqlen": gradient_seqlen,
    }
    if resume is not None:
        stored = _stored(resume)
        model = model or stored.pop("model", None)
        calibration = calibration or stored.pop("calibration", None)
        search_text = search_text or stored.pop("search_text", None)
        for name in ("model", "calibration", "search_text"):
            stored.pop(name, None)
        given = {**stored, **{key: value for key, value in given.items() if value is not None}}
        output = resume
    if model is None or output is None:
        raise PrunerZeroError("give a MODEL and --output, or --resume with the folder of a run")
    display = Display()
    with display:
        result = run(
            model,
            calibration=calibration,
            search_text=search_text,
            output=output,
            cache=cache,
            config=config,
            progress=progress(),
            observer=display,
            **given,
        )
    if as_json:
        print(
            json.dumps(
                {
                    "output": str(result.folder),
                    "stopped": result.stopped,
                    "candidates": len(result.records),
                    "hall_of_fame": result.hall_of_fame.to_json(),
                }
            )
        )
        return
    print(f"{result.folder}: stopped, {result.stopped}; {len(result.records)} candidates")
    for row in result.hall_of_fame.to_json():
        mark = "best" if row["best"] else "knee" if row["knee"] else ""
        print(
            f"{row['complexity']:>3} {row['perplexity']:>10.2f}  "
            f"{row['expression']} @{row['scope']} {mark}"
        )
    if result.stopped == "interrupted":
        print(f"go on with it: pruner-zero search --resume {result.folder}")
        raise typer.Exit(130)
    found = prune_options(result.folder, _stored(result.folder))
    words = " ".join(f"--{name} {value}" for name, value in found.items())
    print(f"prune with it: pruner-zero prune {model} {words} …")


class Display:
    """What a search shows after each batch: a live table on a terminal, a line elsewhere."""

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
        self.live.update(_panel(status), refresh=True)


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


def _panel(status: "Status") -> RenderableType:
    table = Table("complexity", "perplexity", "metric", "scope", title=_line(status))
    for row in status.hall_of_fame.to_json():
        style = "bold" if row["best"] else "cyan" if row["knee"] else ""
        cells = (str(row["complexity"]), f"{row['perplexity']:.2f}", row["expression"])
        table.add_row(*cells, row["scope"], style=style)
    return Group(table)


def _stored(folder: Path) -> dict[str, Any]:
    try:
        stored = dict[str, Any](json.loads((folder / "run.json").read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PrunerZeroError(f"{folder} holds no run to resume: give the folder of one") from error
    return stored
