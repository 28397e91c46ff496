"""`pruner-zero evaluate`: the perplexity of a model, its scores in tasks, its speed."""

import json
from typing import TYPE_CHECKING, Any

from pruner_zero.cli import options
from pruner_zero.cli.terminal import print_table
from pruner_zero.errors import PrunerZeroError
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.settings.read import read_settings

if TYPE_CHECKING:
    from pruner_zero.measuring.perplexity import Perplexity
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
    if not checked.text and checked.tasks is None and not checked.speed:
        raise PrunerZeroError("give --text to measure perplexity on, --tasks or --speed")
    from pruner_zero.files import check_file, write_json
    from pruner_zero.measuring.evaluating import measure

    if output is not None:
        check_file(output)
    perplexities, scores, speed = measure(checked, checked.model, checked.text)
    measured = [perplexity.to_json() for perplexity in perplexities]
    # The values of one text stand beside those of tasks and speed.
    values: dict[str, Any] = {"model": checked.model}
    values |= {"texts": measured} if len(measured) > 1 else dict(*measured)
    origin: dict[str, Any] = {}
    for result in (scores, speed):
        if result is not None:
            values |= result.to_json()
            origin |= values["provenance"]
    if origin:
        values["provenance"] = origin
    if output is not None:
        write_json(output, values)
    if as_json:
        print(json.dumps(values))
        return
    if scores is not None:
        _print_scores(scores)
    if speed is not None:
        header = list(speed.shown)
        rows = [[_count(row[name]) for name in header] for row in speed.rows]
        print_table(header, rows, left=1)
        print(speed.caption())
    for perplexity in perplexities:
        _print_perplexity(perplexity)


def _print_scores(result: "TaskResult") -> None:
    header = list(dict.fromkeys(name for row in result.rows for name in row))
    rows = [[_cell(row.get(name)) for name in header] for row in result.rows]
    print_table(header, rows, left=2)
    print(
        "acc takes the choice of the highest log-probability, acc_norm that of the highest per "
        "character; prob is the probability of the right choice among all; lm-eval "
        f"{result.provenance['lm_eval']}"
    )
    if beside := result.settings.get("beside"):
        print(
            f"gain is the mean change of prob from that of {beside}, over the questions; moved is "
            "the mean absolute change"
        )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def _count(value: object) -> str:
    """A name as it is, a whole number with commas, a speed with one digit."""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_perplexity(result: "Perplexity") -> None:
    described, bits = result.text, result.bits_per_byte
    print(
        f"perplexity {result.perplexity:.2f} per token on {described['windows']} windows of "
        f"{described['seqlen']} tokens of {described['text']} "
        f"({described['joined']}, sha256 {described['text_sha256'][:12]})"
        + ("" if bits is None else f", {bits:.4f} bits per byte")
    )
    if (compared := result.compared) is not None:
        print(
            f"divergence {compared.divergence:.4f} nats per token from {result.beside}, the same "
            f"most likely token for {compared.agreement:.1%}"
        )
