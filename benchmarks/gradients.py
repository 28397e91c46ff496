"""The best length of the windows that the gradients G are taken on, with the same tokens.

    python benchmarks/gradients.py --calibration wiki.valid.raw

Calibrates on windows of the first half of the text and measures on windows of its second half; does
not read the test text. Writes benchmarks/results/gradients.json, table by table, and gradients.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from tables import markdown

HERE = Path(__file__).parent
FILE = HERE / "results" / "gradients.json"
SEQLEN, WINDOWS, WINDOWS_EVAL = 1024, 24, 8
PIECES = (SEQLEN, 128)
TABLES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "50 %": ({"sparsity": 0.5}, ("W * G@global", "W^2 * G^1.5@global", "W * G", "gblm")),
    "2:4": ({"pattern": "2:4"}, ("pruner-zero", "W * G", "column_share(W) * G")),
}


def main() -> None:
    """Measure the tables that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    given = parser.parse_args()
    model = load_model(given.model, "bfloat16")
    lines = Path(given.calibration).read_text().splitlines(keepends=True)
    half = len(lines) // 2
    report: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"tables": {}}
    for pieces in PIECES:
        for name, (zeros, methods) in TABLES.items():
            rows = report["tables"].setdefault(name, {})
            if str(pieces) in rows:
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = compare(
                    model,
                    methods,
                    calibration=lines[:half],
                    text=lines[half:],
                    windows=WINDOWS,
                    seqlen=SEQLEN,
                    gradient_seqlen=pieces,
                    windows_eval=WINDOWS_EVAL,
                    mode="one-shot",
                    output=Path(folder) / "table.json",
                    progress=LineProgress(),
                    **zeros,
                )
            rows[str(pieces)] = result.rows
            report["provenance"] = result.provenance
            write_json(FILE, report)
            write_page(report)
    write_page(report)


def write_page(report: dict[str, Any]) -> None:
    """Write gradients.md."""
    page = [
        "# The length of the windows for G",
        "",
        "Made by `python benchmarks/gradients.py --calibration wiki.valid.raw`: SmolLM2-135M in"
        f" bfloat16, calibrated on {WINDOWS} windows of {SEQLEN} tokens of the first half of"
        " WikiText-2 validation, one-shot, perplexity on"
        f" {WINDOWS_EVAL} windows of {SEQLEN} of its second half. For G, windows are cut into"
        " pieces (`--gradient-seqlen`): the same tokens, and more gradients to square and add up."
        " X is that of whole windows throughout. [Result file](results/gradients.json).",
    ]
    for name, columns in report["tables"].items():
        lengths = list(columns)
        rows = [
            [f"`{method}`", *(f"{columns[n][index]['perplexity']:.2f}" for n in lengths)]
            for index, method in enumerate(TABLES[name][1])
        ]
        table = markdown(["metric", *lengths[:-1], f"{lengths[-1]} tokens"], rows)
        page += ["", f"## {name}", "", table.rstrip()]
    (HERE / "gradients.md").write_text("\n".join([*page, ""]))


if __name__ == "__main__":
    main()
