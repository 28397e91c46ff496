"""`pruner-zero evaluate` and `compare`: measurements of a model, and a table of methods."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table
from pruner_zero.settings.compare_settings import CompareSettings
from pruner_zero.settings.evaluate_settings import EvaluateSettings
from pruner_zero.settings.read_settings import read_settings

if TYPE_CHECKING:
    from pruner_zero.measuring.perplexity import Perplexity
    from pruner_zero.measuring.speed import Speed
    from pruner_zero.measuring.tasks import TaskResult


@options.with_settings(EvaluateSettings)
def evaluate(
    settings: dict[str, Any],
    output: options.OutputFile = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure MODEL's perplexity per token on a text, its scores in tasks, its speed."""
    checked = read_settings(EvaluateSettings, settings, config)
    from pruner_zero.measuring.evaluating import measure
    from pruner_zero.measuring.origin import Measured, to_json
    from pruner_zero.measuring.perplexity import Perplexity
    from pruner_zero.measuring.speed import Speed
    from pruner_zero.measuring.tasks import TaskResult

    printed: dict[type, Callable[[Any], None]] = {
        TaskResult: _print_scores,
        Speed: _print_speed,
        Perplexity: _print_perplexity,
    }
    results: list[Measured] = []
    complete = False
    try:
        for result in measure(checked, checked.model, checked.text, output):
            results.append(result)
            if not as_json:
                printed[type(result)](result)
        complete = True
    finally:
        # What was measured before an error too.
        if as_json and results:
            print(json.dumps(to_json(results, complete)))


def _print_scores(result: "TaskResult") -> None:
    header = list(dict.fromkeys(name for row in result.rows for name in row))
    rows = [[_cell(row.get(name), 4) for name in header] for row in result.rows]
    print_table(header, rows, left=2)
    print(
        "acc takes the choice of the highest log-probability, acc_norm that of the highest per "
        "character; prob is the probability of the right choice among all; lm-eval "
        f"{result.provenance['lm_eval']}"
    )
    if "gain" in header:
        print(
            f"gain is the mean change of prob from that of {result.settings['beside'][0]}, over "
            "the questions; moved is the mean absolute change"
        )


def _print_speed(result: "Speed") -> None:
    rows = [[_cell(row[name], 1) for name in result.shown] for row in result.rows]
    print_table(result.shown, rows, left=1)
    print(result.caption())


def _cell(value: object, digits: int) -> str:
    """A name as it is, a whole number with commas, another number with `digits`."""
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _print_perplexity(result: "Perplexity") -> None:
    from pruner_zero.measuring.perplexity import Perplexity
    from pruner_zero.models.predictions import Divergence

    described, bits = result.text, result.bits_per_byte
    print(
        f"perplexity {result.perplexity:.2f} per token on {described['windows']} windows of "
        f"{described['seqlen']} tokens of {described['text']} "
        f"({described['joined']}, sha256 {described['text_sha256'][:12]})"
        + ("" if bits is None else f", {bits:.4f} bits per byte, {described['text_bytes']:,} bytes")
    )
    match result.compared:
        case Perplexity() as other:
            print(
                f"{other.bits_per_byte:.4f} bits per byte of {result.beside}, "
                f"{other.text['text_bytes']:,} bytes; its tokens are others, so that a divergence "
                "has no meaning"
            )
        case Divergence() as compared:
            print(
                f"divergence {compared.divergence:.4f} nats per token from {result.beside}, the "
                f"same most likely token for {compared.agreement:.1%}"
            )


@options.with_settings(CompareSettings)
def compare(
    settings: dict[str, Any],
    output: options.OutputFile = None,
    overwrite: options.OverwriteTable = False,
    cache: options.Cache = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
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
    header = ("method", "perplexity", "pruned" if smaller else "zeros")
    sizes = ("parameters", "bytes") if smaller else ()
    rows = [_cells(row, sizes) for row in result.rows]
    print_table((*header, *sizes, "seconds", "peak memory"), rows, left=1)
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
        perplexity,
        "" if row["sparsity"] is None else f"{row['sparsity']:.2%}",
        *(f"{row[size]:,}" if size in row else "" for size in sizes),
        f"{row['seconds']:.1f}",
        f"{row['peak_rss_bytes'] / 2**30:.2f} GiB",
    )
