"""How much of the gap to dense minutes of fine-tuning close, zeros intact.

    python benchmarks/recovery.py --calibration wiki.valid.raw --text wiki.test.raw \
        --sparsity 0.5 --metric 'G^1.5 * sqr(W)@global+asymmetric+exact'

Prunes on the calibration text, fine-tunes on it too, and measures before and after on the test
text. Rows are added to benchmarks/results/recovery.json, and recovery.md is written from it.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from pruner_zero import evaluate, prune, recover
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_atomic
from pruner_zero.models import LanguageModel, find_matrices, load_model

HERE = Path(__file__).parent
FILE = HERE / "results" / "recovery.json"


def main() -> None:
    """One more row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--pattern")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--mode", default="full", choices=["full", "lora"])
    parser.add_argument("--teacher", action="store_true", help="learn from the dense model too")
    parser.add_argument("--windows-eval", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("runs/recovery"))
    given = parser.parse_args()
    zeros: dict[str, Any] = (
        {"pattern": given.pattern} if given.pattern else {"sparsity": given.sparsity}
    )
    slug = given.pattern.replace(":", "-") if given.pattern else f"{100 * given.sparsity:g}"
    pruned_folder, folder = given.folder / slug, given.folder / f"{slug}-{given.mode}"
    if not pruned_folder.exists():
        prune(
            given.model,
            metric=given.metric,
            calibration=given.calibration,
            windows=24,
            seqlen=1024,
            seed=0,
            output=pruned_folder,
            progress=LineProgress(),
            **zeros,
        )
    result = recover(
        pruned_folder,
        text=given.calibration,
        output=folder,
        minutes=given.minutes,
        mode=given.mode,
        overwrite=True,
        teacher=given.model if given.teacher else None,
        progress=LineProgress(),
    )
    del result
    before, after = load_model(pruned_folder), load_model(folder)
    models = {"dense": load_model(given.model), "pruned": before, "recovered": after}
    losses = {
        name: evaluate(one, text=given.text, windows=given.windows_eval, progress=LineProgress())
        for name, one in models.items()
    }
    row = {
        "zeros": zeros,
        "metric": given.metric,
        "mode": given.mode,
        "teacher": given.teacher,
        "minutes": given.minutes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "perplexity": {name: one.perplexity for name, one in losses.items()},
        "loss": {name: one.loss for name, one in losses.items()},
        "lost_zeros": lost_zeros(before, after),
        "learning": json.loads((folder / "recovery.json").read_text()),
    }
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    write_atomic(FILE, json.dumps([*rows, row], indent=2) + "\n")
    write_page([*rows, row])


def lost_zeros(before: LanguageModel, after: LanguageModel) -> int:
    """How many weights were zero before and are not after."""
    trained = {one.name: one.parameter for one in find_matrices(after.model)}
    return sum(
        int(((one.parameter == 0) & (trained[one.name] != 0)).sum())
        for one in find_matrices(before.model)
    )


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write recovery.md."""
    lines = [
        "# Recovery by fine-tuning, on SmolLM2-135M",
        "",
        "Made by `python benchmarks/recovery.py --calibration wiki.valid.raw --text"
        " wiki.test.raw` with the options in each row: pruned and fine-tuned on WikiText-2"
        " validation, perplexity on the first 12 windows of test. *closed*: the part of the gap"
        " in loss between pruned and dense that is gone. The dense model was not fine-tuned: a part"
        " of what is gained is that the pruned one has now seen this kind of text."
        " [Result file](results/recovery.json).",
        "",
        "| zeros | method | mode | minutes × threads | pruned | recovered | dense | closed |"
        " zeros lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss, perplexity = row["loss"], row["perplexity"]
        closed = (loss["pruned"] - loss["recovered"]) / (loss["pruned"] - loss["dense"])
        zeros = row["zeros"].get("pattern") or f"{100 * row['zeros']['sparsity']:g} %"
        mode = row["mode"] + (" + teacher" if row["teacher"] else "")
        cells = [zeros, f"`{row['metric']}`", mode, f"{row['minutes']:g} × {row['threads']}"]
        cells += [f"{perplexity[name]:.2f}" for name in ("pruned", "recovered", "dense")]
        cells += [f"{100 * closed:.0f} %" if math.isfinite(closed) else "–", row["lost_zeros"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    (HERE / "recovery.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
