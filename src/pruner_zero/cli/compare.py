"""`pruner-zero compare`: a table of methods and their perplexities."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table
from pruner_zero.settings.compare import CompareSettings


@options.with_settings(CompareSettings)
def compare(
    settings: dict[str, Any],
    output: options.OutputFile = None,
    overwrite: options.OverwriteTable = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune MODEL by each method, from the same statistics, and print the perplexities."""
    from pruner_zero.measuring.comparing import compare as run

    result = run(output=output, overwrite=overwrite, cache=cache, config=config, **settings)
    code = 2 if all("error" in row for row in result.rows) else 0
    if as_json:
        print(json.dumps(result.to_json()))
        raise typer.Exit(code)
    # Zeros leave a model as large as it was.
    smaller = len({row.get("parameters") for row in result.rows if "error" not in row}) > 1
    header = ("method", "mode", "perplexity", "pruned" if smaller else "zeros")
    sizes = ("parameters", "bytes") if smaller else ()
    rows = [_cells(row, sizes) for row in result.rows]
    print_table((*header, *sizes, "seconds", "peak memory"), rows, left=2)
    for row in result.rows:
        for remark in (*([row["error"]] if "error" in row else []), *row.get("notes", [])):
            print(f"{row['method']}: {remark}")
    shared = "seconds and memory of pruning, without the statistics that all methods share"
    print(f"{result.caption()}; {shared}")
    raise typer.Exit(code)


def _cells(row: dict[str, Any], sizes: Sequence[str]) -> tuple[str, ...]:
    perplexity = "failed" if "error" in row else "overflow"
    if row["perplexity"] is not None:
        perplexity = f"{row['perplexity']:.2f}"
    return (
        row["method"],
        row.get("mode", ""),
        perplexity,
        "" if row["sparsity"] is None else f"{row['sparsity']:.2%}",
        *(f"{row[size]:,}" if size in row else "" for size in sizes),
        f"{row['seconds']:.1f}",
        f"{row['peak_rss_bytes'] / 2**30:.2f} GiB",
    )
