"""How much of each matrix: shares evolved for a metric, and together with it.

    OMP_NUM_THREADS=1 python benchmarks/shares.py --calibration wiki.valid.raw \
        --text wiki.test.raw --search search-50-any-default-0-products --minutes 12 [--together]

The winner of a finished search at a share (benchmarks/search.py) goes on as it did, on the same
windows: first its metric, now the offsets of blocks and kinds of matrices. With --together there is
another search from scratch instead, of that seed and on those windows, of metrics with their
shares. Then both are pruned by and measured on the test text in one table, as they are and with
what makes up for a mask. Writes benchmarks/results/shares-*.json, one run each, and shares.md.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pruner_zero import compare, search
from pruner_zero.cli.progress import LineProgress
from pruner_zero.cli.search import Display
from pruner_zero.files import write_atomic
from search import summary, winner

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TOGETHER = "-together"
SHARES = "EVOLVED"


def main() -> None:
    """Evolve shares, if that was not done, and measure the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--calibration", required=True, help="WikiText-2 validation, raw")
    parser.add_argument("--text", required=True, help="WikiText-2 test, raw")
    parser.add_argument("--search", required=True, help="name of a result of benchmarks/search.py")
    parser.add_argument("--together", action="store_true", help="metrics with shares, from scratch")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--windows-eval", type=int, default=24)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--finish", nargs="*", default=["", "+asymmetric+exact"])
    given = parser.parse_args()
    before = json.loads((RESULTS / f"{given.search}.json").read_text())
    metric = winner(RESULTS / f"{given.search}.json")
    name = f"shares-{given.search.removeprefix('search-')}{TOGETHER if given.together else ''}"
    folder, file = given.runs / name, RESULTS / f"{name}.json"
    report: dict[str, Any] = {"metric": metric, "rows": []}
    if file.exists():
        report = json.loads(file.read_text())
    if "shares" not in report:
        with Display() as display:
            result = search(
                given.model,
                calibration=given.calibration,
                search_text=given.calibration,
                output=folder,
                progress=LineProgress(),
                observer=display,
                seed=before["run"]["settings"]["seed"],
                sparsity=given.sparsity,
                allocation="evolved",
                metric=None if given.together else metric,
                minutes=given.minutes,
                workers=1,
            )
        found, shares = folder / "best_allocation.json", None
        if found.exists():
            shares = json.loads(found.read_text())
        # The first candidate need not have come so far as all windows.
        first = result.records[0].evaluation.results.get("all")
        if given.together:
            first = before["best_loss"]
        own = summary(folder, result.stopped)
        report |= {"search": own, "first": first, "shares": shares}
        write_atomic(file, json.dumps(report, indent=2) + "\n")
    best = next(row for row in report["search"]["hall_of_fame"] if row["best"])
    labels = methods = f"{best['expression']}@{best['scope']}"
    if report["shares"] is not None:
        evolved = f"{best['expression']}@{best['scope'].replace('global', 'matrix')}"
        shares_file = given.runs / f"{name}.json"
        shares_file.write_text(json.dumps(report["shares"]))
        labels, methods = f"{evolved}@{SHARES}", f"{evolved}@{shares_file}"
    for finish in given.finish:
        for label, method in ((metric, metric), (labels, methods)):
            if any(row["label"] == f"{label}{finish}" for row in report["rows"]):
                continue
            table = compare(
                given.model,
                [f"{method}{finish}"],
                calibration=given.calibration,
                text=given.text,
                sparsity=given.sparsity,
                mode="sequential" if finish else "one-shot",
                windows_eval=given.windows_eval,
                progress=LineProgress(),
            )
            row = {**table.rows[0], "method": f"{label}{finish}"}
            report["rows"].append({"label": f"{label}{finish}", **row})
            report["provenance"] = table.provenance
            write_atomic(file, json.dumps(report, indent=2) + "\n")
            write_page()
    write_page()


def write_page() -> None:
    """Write shares.md from the result files that are there."""
    lines = [
        "# How much of each matrix: shares evolved, on SmolLM2-135M",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/shares.py --calibration wiki.valid.raw --text"
        " wiki.test.raw --search NAME`: the winner of a search over the whole model at 50 %"
        " ([search.md](search.md)); then `search --allocation evolved --metric METRIC@global`, on"
        " the same windows of WikiText-2 validation. `together`, with `--together`: beside that"
        " winner, the best of another search from scratch, `search --allocation evolved`, of the"
        " same seed and on the same windows, that evolves metrics with their shares. `EVOLVED` are"
        " the shares it found. Perplexity on WikiText-2 test; rows with an update are sequential,"
        " the others one-shot.",
        "",
        "Twelve windows are few for one number a block and a kind of matrix: what is gained on them"
        " is more than what is gained on another text. Give such a search more `--search-windows`.",
    ]
    for file in sorted(RESULTS.glob("shares-*.json")):
        report = json.loads(file.read_text())
        lines += ["", f"## {file.stem.removeprefix('shares-')}", "", *_table(report)]
    (HERE / "shares.md").write_text("\n".join([*lines, ""]))


def _table(report: dict[str, Any]) -> list[str]:
    found = report["search"]
    curve, together = found["curve"], found["run"]["settings"]["metric"] is None
    of_first = "by metrics alone" if together else "with the shares of the metric"
    lines = [
        f"{found['distinct']} distinct candidates in {curve[-1]['seconds'] / 60:.0f} minutes of one"
        f" core; loss on all windows of the search: {shown(report['first'])} {of_first},"
        f" {shown(found['best_loss'])} with the best.",
        "",
        "| method | first 12 windows | 24 windows | seconds |",
        "|---|---|---|---|",
    ]
    for row in report["rows"]:
        losses = row["losses"]
        start = math.exp(sum(losses[:12]) / 12)
        lines.append(
            f"| `{row['label']}` | {start:.2f} | {row['perplexity']:.2f} | {row['seconds']:.0f} |"
        )
    values = [row["perplexity"] for row in report["rows"]]
    gains = [before / after for before, after in zip(values[::2], values[1::2], strict=False)]
    if report["first"] is not None:
        gains.insert(0, math.exp(report["first"] - found["best_loss"]))
    told = ", then ".join(f"{100 * (1 - 1 / gain):.1f} %" for gain in gains)
    where = "on test" if report["first"] is None else "on the windows of the search, then on test"
    return [*lines, "", f"Perplexity gained, {where}: {told}."]


def shown(loss: float | None) -> str:
    """A loss, or that there is none."""
    return "none" if loss is None else f"{loss:.4f}"


if __name__ == "__main__":
    main()
