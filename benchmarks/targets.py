"""Which judgement of a pruned model agrees with its tasks and with text of other kinds.

    python benchmarks/targets.py --calibration wiki.valid.raw --news news.txt --tasks zero-shot

Prunes SmolLM2-135M by metrics that were drawn at random, of which the closed-form error leaves a
range from the best to the middle. Every pruned model is judged as a search could judge it: the
loss, and the divergence from the dense model, on windows of the search text and on windows that
the dense model wrote. Then it is measured on what users want: the loss on two texts of other
kinds and the probability of the right choice in three tasks. The page, targets.md, has Kendall's τ
between each judgement and each of these. A model is a line of results/targets.jsonl, and lines that
are there are kept. news.txt is that of proof.py.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from proof import ask, average
from pruner_zero.calibration import self_windows
from pruner_zero.cli.progress import LineProgress
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.generate import random_start
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.evolution.space import simplest
from pruner_zero.files import read_lines
from pruner_zero.metric import parse
from pruner_zero.models import LanguageModel, load_model
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.mixture import load_mixture
from pruner_zero.text.windows import consecutive_windows

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "targets.jsonl"
MODEL = "builtin:smollm2-135m"
WINDOWS, FIRST_WRITTEN = 4, 72
# Of so many drawn metrics the best by closed form are kept, and every third of those pruned by.
DRAWN, KEPT, EVERY = 360, 120, 3
JUDGEMENTS = {
    "wiki loss": "loss, search text",
    "wiki divergence": "divergence, search text",
    "self loss": "loss, the model's own text",
    "self divergence": "divergence, the model's own text",
    "both loss": "loss, both texts",
    "both divergence": "divergence, both texts",
}
WANTED = {"pydoc": "loss, Python's documentation", "news": "loss, news", "prob": "right choice"}


def main() -> None:
    """Measure the models that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--news", help="the text of news")
    parser.add_argument("--tasks", type=Path, help="the folder of task files")
    parser.add_argument("--items", type=int, nargs=3, default=[150, 150, 75])
    given = parser.parse_args()
    if given.calibration:
        run(given)
    (HERE / "targets.md").write_text(page(read_lines(RESULTS)))


def run(given: argparse.Namespace) -> None:
    """Append a line for every model that has none."""
    settings = SearchSettings(
        model=MODEL,
        calibration=given.calibration,
        sparsity=0.5,
        minutes=1,
        executor="serial",
        search_windows=WINDOWS,
        final_windows=0,
        # The closed form only has to leave out what is hopeless.
        sampled_weights=1_000_000,
        judge_dtype="float32",
    )
    model = load_model(MODEL)
    text = load_mixture(given.calibration, role="calibration")
    calibration, judged, _ = search_windows(settings, text, text, model)
    evaluator = build_evaluator(model, settings, calibration, judged, progress=LineProgress())
    windows = {
        "wiki": judged.tokens,
        "self": self_windows(model, WINDOWS, 1024, 0, first=FIRST_WRITTEN).tokens,
        "pydoc": _test(model, "builtin:pydoc/test"),
        "news": _test(model, given.news),
    }
    dense = {name: _log_probabilities(model.model, windows[name]) for name in ("wiki", "self")}
    known = {line["metric"] for line in read_lines(RESULTS)}
    RESULTS.parent.mkdir(exist_ok=True)
    for text_of, scope in metrics(evaluator, settings):
        name = f"{text_of}@{scope}"
        if name in known:
            continue
        row: dict[str, Any] = {"metric": name}
        with evaluator.masked.masked(parse(text_of), scope) as pruned, torch.no_grad():  # type: ignore[arg-type]
            for kind, tokens in windows.items():
                loss, divergence = _judge(pruned, tokens, dense.get(kind))
                row |= {f"{kind} loss" if kind in dense else kind: loss}
                row |= {f"{kind} divergence": divergence} if kind in dense else {}
            answers = ask(LanguageModel(pruned, model.tokenizer, name), given.tasks, given.items)
        row["tasks"] = {
            task: {key: values[key] for key in ("prob", "acc")} for task, values in answers.items()
        }
        row["prob"] = average({"tasks": answers}, "prob")
        print(row, flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        (HERE / "targets.md").write_text(page(read_lines(RESULTS)))


def metrics(evaluator: Evaluator, settings: SearchSettings) -> list[tuple[str, str]]:
    """Random metrics with their scope, from the best by closed form to the middle."""
    generator, space = np.random.default_rng(0), settings.search_space
    errors: dict[tuple[str, str], float] = {}
    while len(errors) < DRAWN:
        scope = space.scopes[generator.integers(len(space.scopes))]
        expression = simplest(random_start(generator, space), scope, space)
        try:
            with torch.no_grad():
                error = evaluator.reconstruction(expression, scope)
        except PrunerZeroError:
            continue
        errors[str(expression), scope] = error
    return sorted(errors, key=errors.__getitem__)[:KEPT:EVERY]


def _test(model: LanguageModel, source: str) -> Tensor:
    corpus = load_corpus(source, role="test")
    return consecutive_windows(corpus, model.tokenizer, 1024, WINDOWS).tokens


@torch.no_grad()
def _log_probabilities(model: nn.Module, windows: Tensor) -> list[Tensor]:
    return [
        model(window, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        for window in windows.split(1)
    ]


def _judge(
    model: nn.Module, windows: Tensor, dense: Sequence[Tensor] | None
) -> tuple[float, float]:
    """The loss and the divergence from `dense` (0 without it), nats a token."""
    losses, divergences = [], []
    for place, window in enumerate(windows.split(1)):
        (given,) = _log_probabilities(model, window)
        losses.append(-float(given.gather(-1, window[0, 1:, None]).mean()))
        if dense is not None:
            wanted = dense[place]
            divergences.append(float((wanted.exp() * (wanted - given)).sum(-1).mean()))
    return sum(losses) / len(losses), sum(divergences) / max(1, len(divergences))


def page(rows: list[dict[str, Any]]) -> str:
    """The page of Kendall's τ, with 95 % intervals over the models."""
    for row in rows:
        for name in ("loss", "divergence"):
            row[f"both {name}"] = (row[f"wiki {name}"] + row[f"self {name}"]) / 2
    lines = [
        "# Which search text agrees with other texts and tasks",
        "",
        "Made by `python benchmarks/targets.py --calibration wiki.valid.raw --news news.txt"
        f" --tasks zero-shot`. SmolLM2-135M at 50 %, masks of {len(rows)} random metrics from the"
        f" best to the middle of {DRAWN} by closed form. Judged on {WINDOWS} windows of 1024 tokens"
        f" of each text, measured on {WINDOWS} of each other text and on questions of PIQA,"
        " ARC-Easy and HellaSwag (the probability of the right choice, the mean of the three)."
        " Kendall's τ with a 95 % interval over models (bootstrap); 1 is the same order.",
        "",
    ]
    if len(rows) > 2:
        better = sorted(rows, key=lambda row: float(row["wiki divergence"]))[: len(rows) // 2]
        for title, chosen in (("all of them", rows), ("the better half by divergence", better)):
            lines += [
                f"## {title.capitalize()}",
                "",
                "| judged by | " + " | ".join([*WANTED.values(), "mean"]) + " |",
                "|---|" + "---|" * (len(WANTED) + 1),
            ]
            for name, words in JUDGEMENTS.items():
                taus = [_tau(chosen, name, wanted) for wanted in WANTED]
                mean = sum(tau for tau, _, _ in taus) / len(taus)
                cells = [f"{tau:.2f} ({low:.2f}, {high:.2f})" for tau, low, high in taus]
                lines.append(f"| {words} | " + " | ".join([*cells, f"{mean:.2f}"]) + " |")
            lines.append("")
    notes = HERE / "results" / "targets-notes.md"
    lines += [notes.read_text()] if notes.exists() else []
    return "\n".join(lines).rstrip() + "\n"


def _tau(rows: Sequence[dict[str, Any]], judged: str, wanted: str) -> tuple[float, float, float]:
    """Kendall's τ and its 95 % interval; a low judgement should mean a low loss, a high `prob`."""
    sign = -1.0 if wanted == "prob" else 1.0
    values = np.array([(row[judged], sign * row[wanted]) for row in rows])
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(values), size=(500, len(values)))
    taus = [kendalltau(*values[index].T).statistic for index in drawn]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return float(kendalltau(*values.T).statistic), float(low), float(high)


if __name__ == "__main__":
    main()
