"""How losses and seconds of candidates change when they are judged in bfloat16, not float32.

    python benchmarks/judging.py --calibration wiki.valid.raw

Prunes by known and hand-made metrics at 50 % and measures the loss on two windows in both dtypes,
in turn. Writes benchmarks/results/judging.json and judging.md.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from pruner_zero.cli.progress import LineProgress
from pruner_zero.evolution.build import build_evaluator, search_windows
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.files import write_json
from pruner_zero.metric import NAMED, parse
from pruner_zero.models import load_model
from pruner_zero.provenance import provenance
from pruner_zero.sparsity import Scope
from pruner_zero.text.mixture import load_mixture
from tables import markdown

HERE = Path(__file__).parent
METRICS: tuple[tuple[str, Scope], ...] = (
    ("W * G", "global"),
    ("W * G^0.5", "global"),
    ("W * G^0.5 * X^0.25", "global"),
    ("G + W", "global"),
    *((NAMED[name].text, "row") for name in ("wanda", "gblm", "ria", "pruner-zero", "magnitude")),
)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", default="wiki.valid.raw")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    progress = LineProgress()
    model, corpus = load_model(given.model), load_mixture(given.calibration)
    evaluators = {}
    for dtype in ("float32", "bfloat16"):
        settings = SearchSettings(
            model=given.model,
            calibration=given.calibration,
            search_text=given.calibration,
            sparsity=0.5,
            evaluations=1,
            search_windows=2,
            sampled_weights=1,
            judge_dtype=dtype,
        )
        windows, judged, _ = search_windows(settings, corpus, corpus, model)
        evaluators[dtype] = build_evaluator(model, settings, windows, judged, progress=progress)
    rows = []
    for text, scope in progress.track(METRICS, "metrics", len(METRICS)):
        row: dict[str, Any] = {"expression": text, "scope": scope}
        for dtype, evaluator in evaluators.items():
            start = time.monotonic()
            losses = evaluator.masked.losses(parse(text), scope, evaluator.windows)
            row[dtype] = {"losses": losses, "seconds": round(time.monotonic() - start, 2)}
        rows.append(row)
    report = {"rows": rows, "provenance": {**provenance(), "threads": given.threads}}
    write_json(HERE / "results" / "judging.json", report)
    write_page(rows)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write judging.md."""
    means = {
        dtype: [statistics.mean(row[dtype]["losses"]) for row in rows]
        for dtype in ("float32", "bfloat16")
    }
    moved = [abs(wide - narrow) for wide, narrow in zip(*means.values(), strict=True)]
    ratio = statistics.median(
        row["bfloat16"]["seconds"] / row["float32"]["seconds"] for row in rows
    )
    order = kendalltau(*means.values()).statistic
    lines = [
        "# Judging in bfloat16",
        "",
        "Made by `python benchmarks/judging.py --calibration wiki.valid.raw`: SmolLM2-135M at 50 %,"
        " masks from float32 weights in both, the loss on two windows of 1024 tokens, one thread.",
        "",
        f"Losses move by {max(moved):.4f} nats at most; Kendall's τ of the two orders is"
        f" {order:.2f}; masking and both windows take {ratio:.2f} of the time"
        " (median).",
        "",
    ]
    cells = []
    for row, wide, narrow in zip(rows, *means.values(), strict=True):
        seconds = f"{row['float32']['seconds']:.1f}; {row['bfloat16']['seconds']:.1f}"
        name = f"`{row['expression']}` @{row['scope']}"
        cells.append([name, f"{wide:.4f}", f"{narrow:.4f}", seconds])
    lines.append(markdown(("metric", "float32", "bfloat16", "seconds"), cells))
    lines += ["[Result file](results/judging.json).", ""]
    (HERE / "judging.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
