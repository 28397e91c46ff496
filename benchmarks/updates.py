"""Compares the steps after a mask with SparseGPT: updates, swaps and targets.

    python benchmarks/updates.py --calibration wiki.valid.raw --text wiki.test.raw --tables 50 2-4

Every row starts from the same dense weights, prunes blocks in order (sequential), and has the same
calibration windows. `EVOLVED` is the winner of the search with seed 0
(benchmarks/results/search-*.json), which read validation text alone. There is a table for each
sparsity. Every row is written at once, so that an interrupted run continues, and updates.md is
written from all of them.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.progress import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models import load_model
from tables import markdown, zeros_title

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# Results of removed methods stay, and the page says why each method was removed.
REMOVED_ROWS = {
    "50": "`@owl` and `@error`, which shared out the zeros among the matrices, were removed since:"
    " comparing the weights of the whole model (`@global`, as `EVOLVED` does) gains more.",
    "2-4": "`obs-iter`, SparseGPT's sweep choosing its mask by the metric, was removed since.",
}
REMOVED = {
    "mixed-4": "Tried and removed: 2:4 on average, with an N of its own for each matrix, chosen by"
    " the closed-form error. `sparsegpt+asymmetric+exact` reaches 49.16 on 24 windows, and 49.37 at"
    " plain 2:4, where the best row has 45.50; no sparse kernel runs a mixture.",
}

EVOLVED = "EVOLVED"
# The winner of later searches (duel.md), with swaps and least squares.
KRONECKER = "W * (O * X)^0.75@global+refine+asymmetric+exact"
DISTILLED = f"{KRONECKER}+distill=40"
# The end of the label of a row whose statistics are all those of the dense model.
ONE_SHOT = ", one-shot"
# The end of the name of a table with as many tokens of the same text in shorter windows.
SHORT = "-short"

TABLES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "50": (
        {"sparsity": 0.5},
        (
            "dense",
            "sparsegpt",
            KRONECKER,
            DISTILLED,
            "EVOLVED+asymmetric+exact",
            "EVOLVED",
            "EVOLVED+refine",
            f"EVOLVED+refine{ONE_SHOT}",
            "EVOLVED+refine+asymmetric",
            "EVOLVED+refine+asymmetric+exact",
            "EVOLVED+exact",
            "sparsegpt+asymmetric+exact",
            "EVOLVED+obs",
            "wanda",
            "wanda+exact",
            "wanda+refine",
            "wanda+refine+asymmetric",
            "wanda+refine+asymmetric+exact",
            "wanda+obs",
            "EVOLVED+asymmetric+obs",
        ),
    ),
    f"50{SHORT}": ({"sparsity": 0.5, "windows": 96, "seqlen": 256}, (DISTILLED,)),
    "2-4": (
        {"pattern": "2:4"},
        (
            "sparsegpt",
            "sparsegpt+asymmetric+exact",
            "EVOLVED+asymmetric+exact",
            "sparsegpt+asymmetric",
            "EVOLVED+exact",
            "wanda+refine+asymmetric+exact",
            "sparsegpt+refine+asymmetric+exact",
            "EVOLVED+refine+asymmetric+exact",
            "wanda",
            "wanda+refine",
        ),
    ),
    "60": (
        {"sparsity": 0.6},
        (
            "sparsegpt",
            DISTILLED,
            "EVOLVED+refine+asymmetric+exact",
            "EVOLVED+asymmetric+exact",
            "sparsegpt+asymmetric+exact",
        ),
    ),
    "70": (
        {"sparsity": 0.7},
        (
            "sparsegpt",
            DISTILLED,
            "EVOLVED+refine+asymmetric+exact",
            "EVOLVED+asymmetric+exact",
            "sparsegpt+asymmetric+exact",
        ),
    ),
    "4-8": (
        {"pattern": "4:8"},
        (
            "sparsegpt",
            "EVOLVED+asymmetric+exact",
            "sparsegpt+asymmetric+exact",
            "sparsegpt+refine+asymmetric+exact",
            "wanda+refine+asymmetric+exact",
        ),
    ),
}


def main() -> None:
    """Measure the rows that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--windows-eval", type=int, default=24)
    parser.add_argument(
        "--builtin-text", action="store_true", help="measure on builtin:pydoc instead"
    )
    parser.add_argument("--only", nargs="*", help="these rows alone")
    given = parser.parse_args()
    model = load_model(given.model)
    suffix = "-pydoc" if given.builtin_text else ""
    text = "builtin:pydoc" if given.builtin_text else given.text
    for name in given.tables:
        zeros, methods = TABLES[name]
        file = RESULTS / f"updates-{name}{suffix}.json"
        table = json.loads(file.read_text()) if file.exists() else {"rows": []}
        metric = evolved(name)
        for label in given.only or methods:
            method = label.replace(EVOLVED, metric).removesuffix(ONE_SHOT)
            # A row of an earlier winner is measured anew.
            kept = [row for row in table["rows"] if row["label"] != label]
            if any(row["label"] == label and row["method"] == method for row in table["rows"]):
                continue
            result = compare(
                model,
                [method],
                calibration=given.calibration,
                text=text,
                seqlen_eval=1024,
                seed=0,
                mode="one-shot" if label.endswith(ONE_SHOT) else "sequential",
                windows_eval=given.windows_eval,
                progress=LineProgress(),
                **{"windows": 24, "seqlen": 1024, **zeros},
            )
            table["rows"] = [*kept, *({"label": label, **row} for row in result.rows)]
            table["provenance"] = result.provenance
            write_json(file, table)
            write_page()
    write_page()


def evolved(table: str) -> str:
    """The winner of the search at 2:4 for N:M; for sparsities that at 50 %, with its scope."""
    table = table.removesuffix(SHORT)
    name = "2-4-any-default-0-products" if "-" in table else "50-any-default-0-again"
    summary = json.loads((RESULTS / f"search-{name}.json").read_text())
    best = next(row for row in summary["hall_of_fame"] if row["best"])
    scope = "" if "-" in table else f"@{best['scope']}"
    return f"{best['expression']}{scope}"


def write_page() -> None:
    """Write updates.md from the result files that are there."""
    lines = [
        "# What follows a mask, on SmolLM2-135M",
        "",
        "Made by `python benchmarks/updates.py --calibration wiki.valid.raw --text"
        " wiki.test.raw`: calibrated on 24 random windows of 1024 tokens of WikiText-2"
        " validation (seed 0) and blocks in order unless said, perplexity on the test text."
        " *against*: below (−) or above the SparseGPT of the same table, on the first 12"
        " windows. `EVOLVED` is the winner of a search with seed 0 ([search.md](search.md)):"
        " `products` at 2:4 for N:M, on G of pieces of 128 tokens, the earlier `again` at 50 %"
        " for the rest. Seconds are those of pruning, with the statistics of every block; those"
        " of the dense model, which all rows share, come before. Dense: 25.9 on the first 12"
        " windows. How far `asymmetric` aims at the dense outputs was chosen on validation text"
        " ([asymmetry.md](asymmetry.md)). SparseGPT by an earlier commit, on two threads,"
        " has 46.64 at 50 % and 86.25 at 2:4 ([classics.md](classics.md)). The machine was shared:"
        " seconds are upper bounds.",
    ]
    for file in sorted(RESULTS.glob("updates-*.json")):
        lines += ["", *_table(file)]
    (HERE / "updates.md").write_text("\n".join([*lines, ""]))


def _table(file: Path) -> list[str]:
    rows = json.loads(file.read_text())["rows"]
    base = next((_first(row) for row in rows if row["label"] == "sparsegpt"), None)
    name = file.stem.removeprefix("updates-")
    zeros = name.removesuffix("-pydoc").removesuffix(SHORT)
    kind = ", on the built-in text" if name.endswith("-pydoc") else ""
    kind = ", calibrated on 96 windows of 256 tokens" if name.endswith(SHORT) else kind
    table = []
    for row in sorted(rows, key=_first):
        first = _first(row)
        against = f"{100 * (first / base - 1):+.1f} %" if base and math.isfinite(first) else ""
        whole = f"{row['perplexity']:.2f}" if len(row.get("losses", [])) > 12 else ""
        value = f"{first:.2f}" if math.isfinite(first) else str(row.get("error", "–"))
        cells = [row["label"], value, against, whole, f"{row['seconds']:.0f}"]
        table.append([*cells, f"{row['peak_rss_bytes'] / 2**30:.1f}"])
    evolved_rows = {row["expression"] for row in rows if EVOLVED in row["label"]}
    header = ("method", "first 12 windows", "against", "24 windows", "seconds", "peak GiB")
    return [
        f"## {zeros_title(zeros)}{kind}",
        "",
        *([REMOVED[name], ""] if name in REMOVED else []),
        markdown(header, table),
        *(f"EVOLVED: `{expression}`." for expression in sorted(evolved_rows)),
        *(["", REMOVED_ROWS[name]] if name in REMOVED_ROWS else []),
    ]


def _first(row: dict[str, Any]) -> float:
    losses = row.get("losses", [])[:12]
    return math.exp(sum(losses) / len(losses)) if losses else math.inf


if __name__ == "__main__":
    main()
