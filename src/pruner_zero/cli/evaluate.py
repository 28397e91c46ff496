"""`pruner-zero evaluate`: the perplexity of a model, its scores in tasks, its speed."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.settings.read import read_settings

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
    quiet: options.Quiet = False,
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
    described, bits = result.text, result.bits_per_byte
    print(
        f"perplexity {result.perplexity:.2f} per token on {described['windows']} windows of "
        f"{described['seqlen']} tokens of {described['text']} "
        f"({described['joined']}, sha256 {described['text_sha256'][:12]})"
        + ("" if bits is None else f", {bits:.4f} bits per byte, {described['text_bytes']:,} bytes")
    )
    if (compared := result.compared) is not None:
        print(
            f"divergence {compared.divergence:.4f} nats per token from {result.beside}, the same "
            f"most likely token for {compared.agreement:.1%}"
        )
