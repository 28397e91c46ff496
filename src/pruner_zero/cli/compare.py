"""`pruner-zero compare`: one table of methods, one run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress
from pruner_zero.cli.tables import print_table


def compare(
    model: options.ModelOrConfig = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names, expressions or tree files, each "
            "METRIC[@SCOPE][@ALLOCATION][+STEPS]; `dense` and `sparsegpt` among them. "
            "[default: the classics]",
            show_default=False,
        ),
    ] = None,
    calibration: options.Calibration = None,
    text: Annotated[
        str | None,
        typer.Option(help=f"Text to measure on. {options.TEXT}", show_default=False),
    ] = None,
    sparsity: options.Sparsity = None,
    pattern: options.PatternText = None,
    scope: options.ScopeText = None,
    windows: options.Windows = None,
    windows_eval: Annotated[
        int | None,
        typer.Option(help="Windows to measure on. [default: all]", show_default=False),
    ] = None,
    seqlen: options.Seqlen = None,
    seed: options.Seed = None,
    mode: options.ModeText = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dtype: options.DtypeText = None,
    device: options.DeviceText = None,
    gradient_seqlen: options.GradientSeqlen = None,
    damping: options.Damping = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the table.")
    ] = None,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Prune MODEL by each method from the same statistics and print their perplexities."""
    from pruner_zero.comparison import compare as run

    result = run(
        model,
        methods,
        calibration=calibration,
        text=text,
        output=output,
        cache=cache,
        config=config,
        progress=progress(),
        sparsity=sparsity,
        pattern=pattern,
        scope=scope,
        windows=windows,
        windows_eval=windows_eval,
        seqlen=seqlen,
        seed=seed,
        mode=mode,
        include=include,
        exclude=exclude,
        dtype=dtype,
        device=device,
        gradient_seqlen=gradient_seqlen,
        damping=damping,
    )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    rows = [_cells(row) for row in result.rows]
    print_table(("method", "mode", "perplexity", "zeros", "seconds", "peak memory"), rows, left=2)
    for row in result.rows:
        for remark in (*([row["error"]] if "error" in row else []), *row.get("notes", [])):
            print(f"{row['method']}: {remark}")
    tested = result.provenance["evaluation"]
    print(
        f"perplexity per token on {tested['windows']} windows of {tested['seqlen']} tokens of "
        f"{tested['text']}; seconds and memory of pruning, without what all methods share"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    perplexity = "failed" if "error" in row else "overflow"
    if row["perplexity"] is not None:
        perplexity = f"{row['perplexity']:.2f}"
    return (
        row["method"],
        row.get("mode", ""),
        perplexity,
        "" if row["sparsity"] is None else f"{row['sparsity']:.2%}",
        f"{row['seconds']:.1f}",
        f"{row['peak_rss_bytes'] / 2**30:.2f} GiB",
    )
