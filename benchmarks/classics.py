"""Compares the known methods on one model: 50 % and 2:4, one-shot and sequential.

    python benchmarks/classics.py --calibration wiki.valid.raw --text wiki.test.raw

Writes a JSON file for each table to benchmarks/results/, and benchmarks/classics.md from all of
them. Finished tables are kept; --again measures them anew.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.models import load_model
from tables import markdown, measure_once

HERE = Path(__file__).parent

ONE_SHOT = (
    "dense",
    "magnitude",
    "wanda",
    "gblm",
    "ria",
    "z-pruner",
    "pruner-zero",
    "W * G^0.5 * X^0.25@global",
    "sparsegpt",
)
# Magnitude and the published tree use no activations: both modes give them the same masks.
SEQUENTIAL = ("wanda", "sparsegpt")

TABLES: dict[str, dict[str, Any]] = {
    "50-one-shot": {"methods": ONE_SHOT, "sparsity": 0.5, "mode": "one-shot"},
    "50-sequential": {"methods": SEQUENTIAL, "sparsity": 0.5, "mode": "sequential"},
    "2-4-one-shot": {
        "methods": ("magnitude", "wanda", "gblm", "ria", "pruner-zero", "sparsegpt"),
        "pattern": "2:4",
        "mode": "one-shot",
    },
    "2-4-sequential": {"methods": SEQUENTIAL, "pattern": "2:4", "mode": "sequential"},
}


def main() -> None:
    """Measure the tables that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--again", action="store_true", help="measure finished tables anew")
    given = parser.parse_args()
    model = load_model(given.model)
    for name in given.tables:
        measure = partial(
            compare,
            model,
            calibration=given.calibration,
            text=given.text,
            windows=24,
            seqlen=1024,
            seed=0,
            windows_eval=12,
            progress=LineProgress(),
            **TABLES[name],
        )
        output = HERE / "results" / f"classics-{name}.json"
        measure_once(output, given.again, measure)
    write_page()


def write_page() -> None:
    """Write classics.md from the result files that are there."""
    lines = [
        "# The known methods on SmolLM2-135M",
        "",
        "Made by `python benchmarks/classics.py --calibration wiki.valid.raw --text wiki.test.raw`:"
        " calibrated on 24 random windows of 1024 tokens of WikiText-2 validation (seed 0),"
        " perplexity per token on the first 12 windows of 1024 tokens of WikiText-2 test."
        " Seconds are those of pruning from statistics at hand (one-shot) or with its own"
        " forward passes (sequential); peak memory is that of the process during it.",
        "",
    ]
    for name, settings in TABLES.items():
        file = HERE / "results" / f"classics-{name}.json"
        if not file.exists():
            continue
        table = json.loads(file.read_text())
        rows = []
        for row in table["rows"]:
            value = (
                f"{row['perplexity']:.2f}" if row["perplexity"] else row.get("error", "overflow")
            )
            memory = f"{(row['peak_rss_bytes'] or 0) / 2**30:.2f} GiB"
            cells = [f"`{row['method']}`", value, f"{row['sparsity']:.2%}"]
            rows.append([*cells, f"{row['seconds']:.1f}", memory])
        origin = table["provenance"]
        lines += [
            f"## {settings.get('pattern', '50 %')}, {settings['mode']}",
            "",
            markdown(("method", "perplexity", "zeros", "seconds", "peak memory"), rows),
            f"torch {origin['torch']}, transformers {origin['transformers']},"
            f" {origin['threads']} threads, commit {origin['git']}, test text"
            f" {origin['evaluation']['text_sha256'][:12]}."
            f" [Result file](results/{file.name}).",
            "",
        ]
    (HERE / "classics.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
