"""Measures the winner of a search outside its search: at other sparsities, on another text.

    python benchmarks/transfer.py --search search-50-any-default-0-products \
        --calibration wiki.valid.raw --text wiki.test.raw

Writes a JSON file for each table, benchmarks/results/transfer-*.json, and transfer.md from all of
them. Rows are kept: the winner of another search adds a row to each table.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from search import winner
from tables import markdown, zeros_title

HERE = Path(__file__).parent
KNOWN = ("wanda", "ria", "pruner-zero", "W * G^0.5 * X^0.25@global")
TABLES: dict[str, dict[str, Any]] = {
    "40": {"sparsity": 0.4},
    "60": {"sparsity": 0.6},
    "70": {"sparsity": 0.7},
    "2-4": {"pattern": "2:4"},
    "4-8": {"pattern": "4:8"},
    "50-pydoc": {"sparsity": 0.5, "text": "builtin:pydoc"},
}

TITLES = {name: zeros_title(name) for name in TABLES} | {"50-pydoc": "50 %, the built-in text"}


def main() -> None:
    """Measure the rows that are missing and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", required=True, help="name of a summary of benchmarks/search.py")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--windows-eval", type=int, default=12)
    given = parser.parse_args()
    model = load_model(given.model)
    summary = HERE / "results" / f"{given.search}.json"
    for name in given.tables:
        # The groups of N:M lie inside rows, so that a method has no other group there.
        methods = [
            method.removesuffix("@global") if "pattern" in TABLES[name] else method
            for method in (*KNOWN, winner(summary))
        ]
        file = HERE / "results" / f"transfer-{name}.json"
        table: dict[str, Any] = {"rows": []}
        if file.exists():
            table = json.loads(file.read_text())
        measured = {row["method"] for row in table["rows"]}
        for method in methods:
            if method in measured:
                continue
            result = compare(
                model,
                [method],
                calibration=given.calibration,
                mode="one-shot",
                windows_eval=given.windows_eval,
                progress=LineProgress(),
                **{"text": given.text, **TABLES[name]},
            )
            table["rows"].append(result.rows[0] | {"winner": method == methods[-1]})
            table["provenance"] = result.provenance
            write_json(file, table)
    write_page()


def write_page() -> None:
    """Write transfer.md from the result files that are there."""
    lines = [
        "# Metrics found at 50 %, used at other sparsities",
        "",
        "Made by `python benchmarks/transfer.py --search search-50-any-default-0-products"
        " --calibration wiki.valid.raw --text wiki.test.raw`, and by the same of `-pieces`, an"
        " earlier search: SmolLM2-135M, one-shot, the metrics that searches at 50 % found"
        " ([search.md](search.md)), beside known ones; perplexity on WikiText-2 test, in the last"
        " table on the built-in text. G of pieces: windows cut into pieces of so many tokens.",
    ]
    for name in TABLES:
        file = HERE / "results" / f"transfer-{name}.json"
        if not file.exists():
            continue
        table = json.loads(file.read_text())
        windows = table["provenance"]["evaluation"]["windows"]
        rows = []
        for row in table["rows"]:
            value = (
                f"{row['perplexity']:.2f}" if row["perplexity"] else row.get("error", "overflow")
            )
            pieces = str(row.get("gradient_seqlen") or "whole") if "G" in row["expression"] else ""
            mark = "**" if row["winner"] else ""
            rows.append(
                [f"{mark}`{row['expression']}`{mark}", row["scope"] or "N:M", pieces, value]
            )
        lines += ["", f"## {TITLES[name]}", "", f"{windows} windows (`--windows-eval {windows}`)."]
        lines += ["", markdown(("metric", "group", "G of pieces", "perplexity"), rows).rstrip()]
    (HERE / "transfer.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
