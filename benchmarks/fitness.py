"""What the cheap rungs of the search are worth: closed-form error, few windows, the loss.

    python benchmarks/fitness.py --calibration wiki.valid.raw --search-text wiki.valid.raw

Judges known and random metrics in every comparison group by the closed-form errors, and by the
loss and the divergence from the dense model on each search window; writes every number to
benchmarks/results/fitness-*.jsonl as it goes; a second call goes on.
"""

import argparse
import math
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pruner_zero.cli.progress import LineProgress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import append_line, read_lines
from pruner_zero.metric import NAMED, parse
from pruner_zero.models import load_model, next_token_loss
from pruner_zero.search.build import build_evaluator, search_windows
from pruner_zero.search.generate import random_expression
from pruner_zero.search.sample import relative_error, sampled_masks, sensitive_error
from pruner_zero.search.settings import SearchSettings
from pruner_zero.text import load_corpus

HERE = Path(__file__).parent
SCOPES = ("row", "block", "matrix", "global")
BY_HAND = ("W * G", "W * G^0.5", "W * G^0.5 * X^0.25", "W * X * G^0.25", "sqr(W) * G", "W * X^0.5")
# Search windows of the loss, and how many of them the divergence is measured on.
WINDOWS, COMPARED = 8, 2
KNOWN = ("magnitude", "wanda", "gblm", "ria", "pruner-zero")


def main() -> None:
    """Judge what is missing and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--search-text", required=True)
    parser.add_argument("--pattern", help="N:M instead of 50 %%")
    parser.add_argument("--scopes", nargs="*", default=SCOPES)
    parser.add_argument("--random", type=int, default=6, help="random metrics in each scope")
    given = parser.parse_args()
    name = "50" if given.pattern is None else given.pattern.replace(":", "-")
    output = HERE / "results" / f"fitness-{name}-{'-'.join(given.scopes)}.jsonl"
    zeros = {"pattern": given.pattern} if given.pattern else {"sparsity": 0.5}
    settings = SearchSettings(
        model=given.model,
        calibration=given.calibration,
        search_text=given.search_text,
        evaluations=1,
        search_windows=WINDOWS,
        **zeros,
    )
    progress = LineProgress()
    model = load_model(given.model)
    calibration, search = load_corpus(given.calibration), load_corpus(given.search_text)
    windows, judged = search_windows(settings, calibration, search, model.tokenizer)
    evaluator = build_evaluator(model, settings, windows, judged, progress=progress)
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
            str(random_expression(generator, settings.search_space)) for _ in range(given.random)
        ]
        for text in [*texts, *random]:
            if (text, scope) in done:
                continue
            try:
                line = _judge(evaluator, text, scope, judged.tokens, dense)
            except PrunerZeroError as error:
                line = {"reason": str(error)}
            append_line(output, {"expression": text, "scope": scope, **line})
            progress.note(f"{scope:<7} {text[:50]:<50} {line.get('loss', line.get('reason'))}")


@torch.no_grad()
def _judge(
    evaluator: Any, text: str, scope: Any, windows: Tensor, dense: list[Tensor]
) -> dict[str, Any]:
    expression = parse(text)
    start = time.monotonic()
    masks = sampled_masks(evaluator.sample, expression, scope, evaluator.pattern)
    relative = relative_error(evaluator.sample, masks)
    seconds = time.monotonic() - start
    sensitive = sensitive_error(evaluator.sample, masks)
    losses, divergences = [], []
    with evaluator.masked.masked(expression, scope) as model:
        for window, reference in zip_longest(windows, dense):
            if reference is None:
                losses.append(float(next_token_loss(model, window[None])))
                continue
            found = _log_probabilities(model, window)
            losses.append(float(functional.nll_loss(found[:-1], window[1:])))
            divergences.append(
                float(
                    functional.kl_div(
                        found, reference.float(), log_target=True, reduction="batchmean"
                    )
                )
            )
    return {
        "relative": relative,
        "sensitive": sensitive,
        "seconds": round(seconds, 3),
        "full_seconds": round(time.monotonic() - start, 3),
        "loss": sum(losses) / len(losses),
        "perplexity": math.exp(min(sum(losses) / len(losses), 700)),
        "losses": losses,
        "divergences": divergences,
    }


def _log_probabilities(model: Any, window: Tensor) -> Tensor:
    """The model's log-probabilities (tokens, vocabulary) on one window, fp32."""
    return functional.log_softmax(model(window[None], use_cache=False).logits[0].float(), dim=-1)


if __name__ == "__main__":
    main()
