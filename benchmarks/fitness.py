"""How well the cheap rungs of the search rank metrics: closed-form error, few windows, the loss.

    python benchmarks/fitness.py --calibration wiki.valid.raw --search-text wiki.valid.raw

Judges known and random metrics in every comparison group by the closed-form errors, and by the
loss and the divergence from the dense model on each search window. Writes every number at once to
benchmarks/results/fitness-*.jsonl, so that a second call continues, and fitness.md from all these
files; --page only writes the page.
"""

import argparse
import json
import math
import statistics
import time
from itertools import combinations, zip_longest
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn import functional

from pruner_zero.cli.terminal import LineProgress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import build_evaluator, search_windows, space_of
from pruner_zero.evolution.row_sample import closed_form_error, sampled_masks
from pruner_zero.evolution.variation import random_expression
from pruner_zero.files import append_line, read_lines, write_atomic
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import NAMED
from pruner_zero.models.load import load_model
from pruner_zero.models.loss import next_token_loss
from pruner_zero.progress import reported_to
from pruner_zero.settings.search import SearchSettings
from pruner_zero.text.mixture import load_mixture
from tables import markdown, results, script_parser, write_page

SCOPES = ("row", "block", "matrix", "global")
BY_HAND = ("W * G", "W * G^0.5", "W * G^0.5 * X^0.25", "W * X * G^0.25", "sqr(W) * G", "W * X^0.5")
# The number of search windows for the loss, and of those among them for the divergence.
WINDOWS, COMPARED = 8, 2
KNOWN = ("magnitude", "wanda", "gblm", "ria", "pruner-zero")


def main() -> None:
    """Measure the missing metrics and write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", default="wiki.valid.raw")
    parser.add_argument("--search-text", default="wiki.valid.raw")
    parser.add_argument("--pattern", help="N:M instead of 50 %%")
    parser.add_argument("--scopes", nargs="*", default=SCOPES)
    parser.add_argument("--random", type=int, default=6, help="random metrics in each scope")
    parser.add_argument("--only-closed", action="store_true", help="judge no further metric")
    parser.add_argument("--page", action="store_true", help="only write fitness.md anew")
    given = parser.parse_args()
    if not given.page:
        measure(given)
    write_page("fitness", page())


def measure(given: argparse.Namespace) -> None:
    """Judge the metrics that are missing, and write a line for each."""
    name = "50" if given.pattern is None else given.pattern.replace(":", "-")
    output = results(f"fitness-{name}-{'-'.join(given.scopes)}.jsonl")
    zeros = {"pattern": given.pattern} if given.pattern else {"sparsity": 0.5}
    settings = SearchSettings(
        model=given.model,
        calibration=given.calibration,
        search_text=given.search_text,
        evaluations=1,
        search_windows=WINDOWS,
        judge_dtype="float32",
        **zeros,
    )
    progress = LineProgress()
    model = load_model(given.model)
    calibration, search = load_mixture(given.calibration), load_mixture(given.search_text)
    windows, judged, _ = search_windows(settings, calibration, search, model)
    with reported_to(progress):
        evaluator = build_evaluator(model, settings, windows, judged)
    with torch.no_grad():
        dense = [
            _log_probabilities(model.model, window).half() for window in judged.tokens[:COMPARED]
        ]
    done = {(line["expression"], line["scope"]) for line in read_lines(output)}
    generator = np.random.default_rng(0)
    scopes = ("row",) if given.pattern else given.scopes
    texts = [NAMED[name].text for name in KNOWN] + list(BY_HAND)
    for scope in scopes:
        random = [
            str(random_expression(generator, space_of(settings))) for _ in range(given.random)
        ]
        for text in [*texts, *random]:
            if (text, scope) in done or given.only_closed:
                continue
            try:
                line = _judge(evaluator, text, scope, judged.tokens, dense)
            except PrunerZeroError as error:
                line = {"reason": str(error)}
            append_line(output, {"expression": text, "scope": scope, **line})
            progress.note(f"{scope:<7} {text[:50]:<50} {line.get('loss', line.get('reason'))}")
    closed_lines = [
        {"expression": line["expression"], "scope": line["scope"]}
        | closed_forms(evaluator, line["expression"], line["scope"])
        for line in progress.track(read_lines(output), "closed forms")
        if "loss" in line
    ]
    closed = output.with_name(output.name.replace("fitness", "closed-forms"))
    write_atomic(closed, "".join(json.dumps(line) + "\n" for line in closed_lines))


@torch.no_grad()
def _judge(
    evaluator: Any, text: str, scope: Any, windows: Tensor, dense: list[Tensor]
) -> dict[str, Any]:
    start = time.monotonic()
    losses, divergences = [], []
    with evaluator.masked.masked(parse(text), scope) as model:
        for window, reference in zip_longest(windows, dense):
            if reference is None:
                losses.append(float(next_token_loss(model, window[None])))
                continue
            log_p = _log_probabilities(model, window)
            losses.append(float(functional.nll_loss(log_p[:-1], window[1:])))
            divergence = functional.kl_div(
                log_p, reference.float(), log_target=True, reduction="batchmean"
            )
            divergences.append(float(divergence))
    return {
        "full_seconds": round(time.monotonic() - start, 3),
        "loss": sum(losses) / len(losses),
        "losses": losses,
        "divergences": divergences,
    }


@torch.no_grad()
def closed_forms(evaluator: Any, text: str, scope: Any) -> dict[str, float]:
    """Three closed-form errors of one metric from its masks on the sampled rows.

    relative: the mean over matrices of the log of the lost share of the layer's output.
    sensitive: the log of the sum of all layer errors, each row weighed by its output's gradient.
    closed: `closed_form_error`, the error that the search uses.
    """
    start = time.monotonic()
    masks = sampled_masks(evaluator.sample, parse(text), scope, evaluator.masked.pattern)
    closed = closed_form_error(evaluator.sample, masks)
    seconds = time.monotonic() - start
    lost, sensitive = [], 0.0
    for stacked, mask in zip(evaluator.sample, masks, strict=True):
        errors = stacked.errors(mask)
        lost.append((errors.sum(-1) / stacked.norms.sum(-1)).flatten())
        sensitive += stacked.share * float((errors * stacked.sensitivity).sum())
    return {
        "relative": float(torch.cat(lost).clamp_min(1e-30).log().mean()),
        "sensitive": math.log(max(sensitive, 1e-30)),
        "closed": closed,
        "seconds": round(seconds, 3),
    }


def _log_probabilities(model: Any, window: Tensor) -> Tensor:
    """The model's log-probabilities (tokens, vocabulary) on a window, fp32."""
    return functional.log_softmax(model(window[None], use_cache=False).logits[0].float(), dim=-1)


def page() -> str:
    """The page of the result files that are there."""
    names = ["relative", "sensitive", "closed"]
    names += [f"{kind}, {count}" for count in (1, 2) for kind in ("loss", "divergence")]
    lines = [
        "# What the cheap rungs of the search are worth",
        "",
        "Made by `python benchmarks/fitness.py --scopes global` (and `row`), from the folder of"
        " the WikiText-2 files, on SmolLM2-135M at 50 %: known, hand-made and random metrics,"
        " statistics from 24 windows of the first half of the validation text, judged on"
        f" {WINDOWS} windows of 1024 tokens of its second half.",
        "",
        "Kendall's τ with the loss of the pruned model; in brackets among the better half."
        " *relative*: mean log of the lost share of each layer's output. *sensitive*: all layer"
        " errors, rows weighed by the gradient at their output. *closed*: the same, each matrix"
        " divided by (1 − lost share)⁸, which is what the search uses. *loss* and *divergence*"
        " from the dense model: on the first window or two, against the mean loss of the others,"
        " with which they share no token. Perplexity is the exponential of the loss and ranks"
        " alike. *seconds*: one closed-form rung; masking the model and all windows.",
        "",
    ]
    rows, judged = [], []
    for file in sorted(results("").glob("fitness-*.jsonl")):
        closed = {
            (line["expression"], line["scope"]): line
            for line in read_lines(file.with_name(file.name.replace("fitness", "closed-forms")))
        }
        metrics = [
            closed[line["expression"], line["scope"]] | line
            for line in read_lines(file)
            if (line["expression"], line["scope"]) in closed
        ]
        if metrics:
            rows.append(_row(file.stem.removeprefix("fitness-"), metrics))
            judged += metrics if file.stem.startswith("fitness-50") else []
    rows.append(_row("50, together", judged))
    lines += [
        markdown(("groups", "metrics", *names, "seconds"), rows),
        f"Over all {len(judged)}, the closed-form error (a logarithm) rises by"
        f" {_slope(judged):.1f} per nat of loss, the median slope over all pairs: where a search"
        " cannot tell yet, `Surrogate` takes 2.",
    ]
    return "\n".join(lines)


def _slope(judged: list[dict[str, Any]]) -> float:
    points: list[tuple[float, float]] = [(line["loss"], line["closed"]) for line in judged]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    return statistics.median(slopes)


def _row(name: str, judged: list[dict[str, Any]]) -> list[str]:
    predictors = [
        ([line[name] for line in judged], [line["loss"] for line in judged])
        for name in ("relative", "sensitive", "closed")
    ]
    for count in (1, 2):
        rest = [sum(line["losses"][count:]) for line in judged]
        for kind in ("losses", "divergences"):
            predictors.append(([sum(line[kind][:count]) for line in judged], rest))
    cells = [name, str(len(judged))]
    for values, losses in predictors:
        middle = sorted(losses)[(len(losses) + 1) // 2 - 1]
        best = [pair for pair in zip(values, losses, strict=True) if pair[1] <= middle]
        everyone = kendalltau(values, losses).statistic
        better = kendalltau(*zip(*best, strict=True)).statistic
        cells.append(f"{everyone:.2f} ({better:.2f})")
    cheap = statistics.median(line["seconds"] for line in judged)
    dear = statistics.median(line["full_seconds"] for line in judged)
    return [*cells, f"{cheap:.2f}; {dear:.0f}"]


if __name__ == "__main__":
    main()
