"""Smaller models: without a quarter of the MLP channels or a tenth of the blocks, refit or not.

    python benchmarks/structured.py --calibration wiki.valid.raw --text wiki.test.raw

Writes benchmarks/results/structured.json and structured.md. Finished runs are kept.
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM

from pruner_zero import evaluate, prune
from pruner_zero.cli.progress import LineProgress
from pruner_zero.evaluation import measure_speed
from pruner_zero.files import write_atomic
from pruner_zero.models import LanguageModel, load_model
from pruner_zero.provenance import provenance
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "structured.json"
RUNS: dict[str, dict[str, Any]] = {
    "channels, as chosen": {"structure": "channels", "sparsity": 0.25, "update": "none"},
    "channels, refitted": {"structure": "channels", "sparsity": 0.25},
    "blocks, as chosen": {"structure": "blocks", "sparsity": 0.1, "update": "none"},
    "blocks, folded": {"structure": "blocks", "sparsity": 0.1},
}
SHAPES: dict[str, dict[str, int]] = {
    "channels": {"intermediate_size": 1152},
    "blocks": {"num_hidden_layers": 27},
}
PROMPT, TURNS = 512, 9


def main() -> None:
    """Measure the runs that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    given = parser.parse_args()
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}}
    rows = report["rows"]
    with TemporaryDirectory() as folder:
        if "dense" not in rows:
            rows["dense"] = judged(load_model(given.model, dtype="float32"), given.text)
        for name in given.runs:
            if name in rows:
                continue
            result = prune(
                load_model(given.model, dtype="float32"),
                None if name.startswith("blocks") else "wanda",
                calibration=given.calibration,
                output=Path(folder) / name,
                progress=LineProgress(),
                **RUNS[name],
            )
            rows[name] = {
                **judged(load_model(Path(folder) / name), given.text),
                "seconds": round(result.cost.seconds, 1),
            }
            report["calibration"] = result.calibration
            report["provenance"] = provenance()
            write_atomic(FILE, json.dumps(report, indent=2) + "\n")
    if "speed" not in report:
        report["speed"] = speeds(given.model)
        write_atomic(FILE, json.dumps(report, indent=2) + "\n")
    write_page(report)


def speeds(model: str) -> dict[str, Any]:
    """Tokens a second of each shape. Weights are random, since speed does not depend on them."""
    dense = load_model(model, dtype="float32")
    shapes = [dense]
    for name, sizes in SHAPES.items():
        config = deepcopy(dense.model.config)
        for field, size in sizes.items():
            setattr(config, field, size)
        smaller = AutoModelForCausalLM.from_config(config, dtype="float32").eval()
        shapes.append(LanguageModel(smaller, None, name))
    return measure_speed(shapes, PROMPT, turns=TURNS).to_json()


def judged(model: LanguageModel, text: str) -> dict[str, Any]:
    """Perplexity on the first 8 windows of 1024 tokens, and the number of parameters."""
    perplexity = evaluate(model, text, windows=8, seqlen=1024)
    return {"perplexity": perplexity.perplexity, "parameters": model.model.num_parameters()}


def write_page(report: dict[str, Any]) -> None:
    """Write structured.md."""
    page = [
        "# A smaller model",
        "",
        "Made by `python benchmarks/structured.py --calibration wiki.valid.raw --text"
        " wiki.test.raw`: SmolLM2-135M in float32; a quarter of the channels by Wanda's scores, a"
        " tenth of the blocks by their influence; calibrated on 24 windows of 1024 tokens of"
        " WikiText-2 validation, perplexity on the first 8 windows of 1024 tokens of its test."
        f" *prefill* is the speed of a pass over {PROMPT} tokens, *decode* that of 32 tokens after"
        " them, one by one, both beside the dense model's: one thread of a CPU, batch 1, the models"
        f" in turns, medians of {TURNS}, with random weights of these shapes, on which speed does"
        " not depend. [Result file](results/structured.json).",
        "",
    ]
    fast = {row["model"]: row for row in report["speed"]["speed"]}
    dense = report["speed"]["speed"][0]
    rows = []
    for name in ("dense", *(name for name in RUNS if name in report["rows"])):
        row, shape = report["rows"][name], fast.get(name.split(",")[0], dense)
        times = [f"×{shape[kind] / dense[kind]:.2f}" for kind in ("prefill", "decode")]
        cells = [name, f"{row['parameters'] / 1e6:.1f} M", f"{row['perplexity']:.2f}"]
        rows.append([*cells, *times])
    page.append(markdown(("model", "parameters", "perplexity", "prefill", "decode"), rows))
    (HERE / "structured.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
