"""How far asymmetric updates and swaps should aim at the dense model's outputs.

    python benchmarks/asymmetry.py --calibration wiki.valid.raw

Calibrates on windows of the first half of the text and measures on windows of its second half; does
not read the test text. Writes benchmarks/results/asymmetry.json and asymmetry.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from pruner_zero.pruning import statistics
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "asymmetry.json"
METHODS = {
    "wanda+asymmetric+obs": (0.0, 0.125, 0.25, 0.375, 0.5, 1.0),
    "wanda+refine+asymmetric": (0.0, 0.25, 0.5),
}


def main() -> None:
    """Measure the strengths that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    model = load_model(given.model)
    lines = Path(given.calibration).read_text().splitlines(keepends=True)
    half, taken = len(lines) // 2, statistics.ASYMMETRY
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    cases = [(method, strength) for method in given.methods for strength in METHODS[method]]
    for method, strength in cases:
        if any((row["method"], row["strength"]) == (method, strength) for row in report["rows"]):
            continue
        statistics.ASYMMETRY = strength
        result = compare(
            model,
            [method],
            calibration=lines[:half],
            text=lines[half:],
            sparsity=0.5,
            windows=8,
            seqlen=512,
            windows_eval=16,
            progress=LineProgress(),
        )
        report["rows"].append({"strength": strength, **result.rows[0]})
        report["provenance"] = result.provenance
        write_json(FILE, report)
        write_page(report, taken)
    write_page(report, taken)


def write_page(report: dict[str, Any], taken: float) -> None:
    """Write asymmetry.md."""
    page = [
        "# How far updates and swaps should aim at the dense outputs",
        "",
        "Made by `python benchmarks/asymmetry.py --calibration wiki.valid.raw`: SmolLM2-135M at"
        " 50 %, calibrated on 8 windows of 512 tokens of the first half of WikiText-2 validation,"
        " measured on 16 windows of its second half. *strength*: 0 aims at what the dense weights"
        " give on the inputs of the pruned model, 1 at what the dense model gives on its own."
        f" `prune` takes {taken:g}. [Result file](results/asymmetry.json).",
        "",
    ]
    rows = sorted(report["rows"], key=lambda row: float(row["strength"]))
    cells = [
        [f"`{method}`", f"{row['strength']:g}", f"{row['perplexity']:.2f}"]
        for method in METHODS
        for row in rows
        if row["method"] == method
    ]
    page.append(markdown(("method", "strength", "perplexity"), cells))
    (HERE / "asymmetry.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
