"""Compares methods on one model: known metrics, the steps after a mask, winners of searches.

    python benchmarks/methods.py --calibration wiki.valid.raw --text wiki.test.raw \
        --tables classics-50-one-shot updates-2-4

A table is a file under benchmarks/results/, of the page that its name begins with: classics.md,
updates.md or transfer.md. Every row is written at once, so that an interrupted run continues, and
rows that are there are kept. All tables are measured unless some are named.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruner_zero import compare
from pruner_zero.cli.terminal import LineProgress
from pruner_zero.files import write_json
from pruner_zero.models.load import load_model
from pruner_zero.progress import reported_to
from tables import cut, markdown, results, script_parser, write_page

# The winners of earlier searches (decisions.md), at 2:4 and at 50 %, and one of a later search.
EVOLVED = "EVOLVED"
WINNERS = {
    "pattern": "column_share(G^0.333 * column_normalize(W)^0.667) * row_normalize(X)^0.667",
    "sparsity": "G^1.5 * sqr(W)@global",
}
AT_HALF = "min(W, W * W) * (W * min(W^0.75, G * G))@global"
# The end of the label of a row whose statistics are all those of the dense model.
ONE_SHOT = ", one-shot"
BUILTIN = "builtin:pydoc"

KNOWN = ("dense", "magnitude", "wanda", "gblm", "ria", "z-pruner", "pruner-zero")
BY_HAND = "W * G^0.5 * X^0.25@global"
FOUND = ("wanda", "ria", "pruner-zero", BY_HAND, AT_HALF)
HALF = (
    *("sparsegpt", "EVOLVED", "EVOLVED+refine", f"EVOLVED+refine{ONE_SHOT}", "EVOLVED+exact"),
    *("EVOLVED+obs", "wanda", "wanda+exact", "wanda+refine", "wanda+obs"),
)
SEMI = ("sparsegpt", "EVOLVED", "EVOLVED+exact", "wanda", "wanda+refine")


@dataclass(frozen=True)
class Table:
    """A file of rows: what all share, and the methods; text: another one than that of the test."""

    title: str
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    text: str | None = None

    def method(self, label: str) -> str:
        """The method of a row, as `compare` takes it."""
        kind = "pattern" if "pattern" in self.settings else "sparsity"
        method = label.replace(EVOLVED, WINNERS[kind]).removesuffix(ONE_SHOT)
        # The groups of N:M lie inside rows, so that a method has no other group there.
        return method.replace("@global", "") if kind == "pattern" else method


AT_40, AT_50, AT_60, AT_70 = ({"sparsity": number / 100} for number in (40, 50, 60, 70))
AT_2_4, AT_4_8 = {"pattern": "2:4"}, {"pattern": "4:8"}
ONCE, IN_ORDER = {"mode": "one-shot"}, {"mode": "sequential"}
ON_BUILTIN_TEXT = ", measured on the built-in text"
TABLES = {
    "classics-50-one-shot": Table("50 %, one-shot", (*KNOWN, BY_HAND, "sparsegpt"), AT_50 | ONCE),
    "classics-50-sequential": Table("50 %, sequential", ("wanda", "sparsegpt"), AT_50 | IN_ORDER),
    "classics-2-4-one-shot": Table("2:4, one-shot", (*KNOWN, "sparsegpt"), AT_2_4 | ONCE),
    "classics-2-4-sequential": Table("2:4, sequential", ("wanda", "sparsegpt"), AT_2_4 | IN_ORDER),
    "updates-50": Table("50 %", HALF, AT_50 | IN_ORDER),
    "updates-2-4": Table("2:4", SEMI, AT_2_4 | IN_ORDER),
    "updates-50-pydoc": Table(
        f"50 %{ON_BUILTIN_TEXT}",
        ("sparsegpt", "EVOLVED", "EVOLVED+refine"),
        AT_50 | IN_ORDER,
        BUILTIN,
    ),
    "updates-2-4-pydoc": Table(
        f"2:4{ON_BUILTIN_TEXT}", ("sparsegpt", "EVOLVED", "wanda"), AT_2_4 | IN_ORDER, BUILTIN
    ),
    "transfer-40": Table("40 %", FOUND, AT_40 | ONCE),
    "transfer-60": Table("60 %", FOUND, AT_60 | ONCE),
    "transfer-70": Table("70 %", FOUND, AT_70 | ONCE),
    "transfer-2-4": Table("2:4", FOUND, AT_2_4 | ONCE),
    "transfer-4-8": Table("4:8", FOUND, AT_4_8 | ONCE),
    "transfer-50-pydoc": Table(f"50 %{ON_BUILTIN_TEXT}", FOUND, AT_50 | ONCE, BUILTIN),
}
MADE = (
    "Made by `python benchmarks/methods.py --calibration wiki.valid.raw --text wiki.test.raw`:"
    " SmolLM2-135M, calibrated on 24 random windows of 1024 tokens of WikiText-2 validation (seed"
    " 0) unless said, perplexity per token on the first windows of 1024 tokens of WikiText-2 test."
    " Dense: 25.88 on 12 windows. *against*: below (−) or above the SparseGPT of the same table, on"
    " the first 12 windows. Seconds are those of pruning, with the statistics of each block where"
    " blocks are pruned in order; the machine was shared, so that they are upper bounds."
)
PIECES = (
    " *G of 128 tokens*: the windows for G were cut into pieces of 128 tokens, an option removed"
    " since ([decisions](decisions.md#windows-for-gradients))."
)
# By page: its title, and what is to be known besides.
PAGES = {
    "classics": ("The known methods on SmolLM2-135M", ""),
    "updates": (
        "What follows a mask, on SmolLM2-135M",
        " Blocks are pruned in order unless said. `EVOLVED` is the winner of an [earlier"
        f" search](decisions.md#earlier-searches): at N:M `{WINNERS['pattern']}`, by G of 128"
        f" tokens, else `{WINNERS['sparsity']}`." + PIECES,
    ),
    "transfer": (
        "Metrics found at 50 %, used at other sparsities",
        " One-shot. In bold the winners of two [earlier"
        " searches](decisions.md#earlier-searches) at 50 %." + PIECES,
    ),
}


def main() -> None:
    """Measure the rows that are missing and write the pages."""
    parser = script_parser(__doc__)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--text", help="WikiText-2 test, raw")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--windows-eval", type=int, default=24)
    parser.add_argument("--only", nargs="*", help="these rows alone")
    given = parser.parse_args()
    for name in given.tables if given.text else ():
        measure(name, given)
    write_pages()


def measure(name: str, given: argparse.Namespace) -> None:
    """Append the rows that a table lacks."""
    chosen, file = TABLES[name], results(f"{name}.json")
    table: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": []}
    model = load_model(given.model)
    for label in given.only or chosen.methods:
        if any(_label(row) in (label, chosen.method(label)) for row in table["rows"]):
            continue
        usual = {"windows": 24, "seqlen": 1024, "seqlen_eval": 1024, "seed": 0}
        settings: dict[str, Any] = {**usual, **chosen.settings}
        if label.endswith(ONE_SHOT):
            settings["mode"] = "one-shot"
        with reported_to(LineProgress()):
            result = compare(
                model,
                [chosen.method(label)],
                calibration=given.calibration,
                text=chosen.text or given.text,
                windows_eval=given.windows_eval,
                **settings,
            )
        winner = label == AT_HALF or EVOLVED in label
        table["rows"] += [{"label": label, **row, "winner": winner} for row in result.rows]
        table["provenance"] = result.provenance
        write_json(file, table)
        write_pages()


def write_pages() -> None:
    """Write the pages from the result files that are there."""
    for page, (title, note) in PAGES.items():
        lines = [f"# {title}", "", MADE + note]
        for name, chosen in TABLES.items():
            file = results(f"{name}.json")
            if name.startswith(page) and file.exists():
                table = json.loads(file.read_text())
                lines += ["", f"## {chosen.title}", "", _shown(table), _origin(table, file)]
        write_page(page, "\n".join(lines))


def _shown(table: dict[str, Any]) -> str:
    """The rows of a table, the best first; columns without a value are left out."""
    rows = sorted(table["rows"], key=_first)
    base = next((_first(row) for row in rows if _label(row) == "sparsegpt"), math.nan)
    cells = []
    for row in rows:
        first, losses = _first(row), row.get("losses", ())
        against = f"{100 * (first / base - 1):+.1f} %" if _label(row) != "dense" else ""
        cells.append(
            [
                _name(row, table["provenance"]["settings"]),
                f"{first:.2f}" if math.isfinite(first) else str(row.get("error", "overflow")),
                f"{math.exp(sum(losses) / len(losses)):.2f}" if len(losses) > 12 else "",
                against if math.isfinite(first / base) else "",
                f"{row['seconds']:.0f}",
                f"{(row['peak_rss_bytes'] or 0) / 2**30:.1f}",
            ]
        )
    header = ["method", "12 windows", "24 windows", "against", "seconds", "peak GiB"]
    return markdown(*cut(header, cells))


def _name(row: dict[str, Any], settings: dict[str, Any]) -> str:
    name = f"`{_label(row)}`"
    pieces = row.get("gradient_seqlen", settings.get("gradient_seqlen"))
    # The page of EVOLVED says it for all its rows.
    if pieces and "G" in row.get("expression", "") and EVOLVED not in name:
        name += f", G of {pieces} tokens"
    return f"**{name}**" if row.get("winner") and EVOLVED not in name else name


def _label(row: dict[str, Any]) -> str:
    return str(row.get("label", row["method"]))


def _first(row: dict[str, Any]) -> float:
    """The perplexity on the first 12 windows."""
    losses = row.get("losses", [])[:12]
    return math.exp(sum(losses) / len(losses)) if losses else row["perplexity"] or math.inf


def _origin(table: dict[str, Any], file: Path) -> str:
    origin = table["provenance"]
    return (
        f"torch {origin['torch']}, transformers {origin['transformers']}, {origin['threads']}"
        f" threads, commit {origin['git']}, test text {origin['evaluation']['text_sha256'][:12]}."
        f" [Result file](results/{file.name})."
    )


if __name__ == "__main__":
    main()
