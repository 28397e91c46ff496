"""The page of `search_cost.py`, from its result file and the committed searches."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruner_zero.evolution.evaluator import RUNGS
from unshared import SHARED

HERE = Path(__file__).parent


def committed() -> list[dict[str, Any]]:
    """Seconds and shares of the rungs in the committed searches of this evolution."""
    rows = []
    for file in sorted((HERE / "results").glob("search-*-default-*.json")):
        found = json.loads(file.read_text())
        total = {rung: one["count"] * one["mean_seconds"] for rung, one in found["rungs"].items()}
        rungs = {
            rung: (found["rungs"][rung]["mean_seconds"], seconds / sum(total.values()))
            for rung, seconds in total.items()
        }
        rows.append({"run": file.stem.removeprefix("search-"), "rungs": rungs})
    return rows


def write_page(report: dict[str, Any]) -> None:
    """Write search_cost.md."""
    lines = [
        "# What a search costs",
        "",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/search_cost.py`: one process with one thread,"
        " at 50 %, statistics and losses on builtin:pydoc. Seconds are of processor time."
        " [Result file](results/search-cost.json).",
    ]
    writers: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "rungs": _rungs_part,
        "windows": _windows_part,
        "sizes": _sizes_part,
        "sharing": _sharing_part,
        "profile": _profile_part,
    }
    for name, write in writers.items():
        if name in report:
            lines += ["", *write(report[name])]
    (HERE / "search_cost.md").write_text("\n".join([*lines, ""]))


def _rungs_part(found: dict[str, Any]) -> list[str]:
    rungs, windows = found["rungs"], found["windows"]
    titles = {
        "rejection": "rejection, by form",
        "probe": "probe",
        "reconstruction": "reconstruction",
        "few": f"few ({windows['few']} windows)",
        "all": f"all ({windows['all']} windows)",
    }
    rest = 1 - sum(one["share"] for one in rungs.values())
    lines = [
        "## By rung",
        "",
        f"A search of {found['candidates']} candidates on SmolLM2-135M, windows of"
        f" {found['seqlen']} tokens, {found['seconds']:.0f} s. Rejection: whether a proposal can"
        " mask and is new, by its canonical form, before it becomes a candidate.",
        "",
        "| rung | asked | median | share of the time |",
        "|---|---|---|---|",
    ]
    for rung, title in titles.items():
        if rung in rungs:
            one = rungs[rung]
            median = _time(one["median_seconds"])
            lines.append(f"| {title} | {one['count']} | {median} | {one['share']:.1%} |")
    lines += [
        f"| drawing proposals, deciding, journal | | | {rest:.1%} |",
        "",
        "The same from the [committed searches](search.md), which had longer to find what is"
        " worth a loss: mean wall time and share of what was spent on judging.",
        "",
        "| run | " + " | ".join(RUNGS) + " |",
        "|---|---|---|---|---|",
    ]
    for row in committed():
        cells = [f"{_time(row['rungs'][rung][0])}, {row['rungs'][rung][1]:.0%}" for rung in RUNGS]
        lines.append("| " + " | ".join([row["run"], *cells]) + " |")
    return lines


def _windows_part(found: dict[str, Any]) -> list[str]:
    counts = [int(count) for count in found["seconds"]]
    seconds = list(found["seconds"].values())
    slope, start = statistics.linear_regression(counts, seconds)
    return [
        "## By windows",
        "",
        f"Masking all matrices and the loss on so many windows of {found['seqlen']} tokens,"
        f" medians over three metrics and {found['repeats']} turns. The line through"
        f" them: {start:.1f} s, and {slope:.2f} s a window.",
        "",
        "| windows | " + " | ".join(map(str, counts)) + " |",
        "|---|" + "---|" * len(counts),
        "| seconds | " + " | ".join(f"{one:.1f}" for one in seconds) + " |",
    ]


def _sizes_part(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    least = rows[0]
    lines = [
        "## By size of the model",
        "",
        "Random models of SmolLM2-135M's width, bfloat16, windows of"
        f" {found['seqlen']} tokens; the median of a candidate, and how many times those of"
        " the smallest. The closed form looks at 8 M weights of any model: what grows is the number"
        " of statistics that these meet.",
        "",
        f"| blocks | weights | × | probe | reconstruction | few ({found['few_windows']} window)"
        f" | all ({found['search_windows']} windows) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{_time(row['seconds'][rung])} ({row['seconds'][rung] / least['seconds'][rung]:.1f}×)"
            for rung in RUNGS
        ]
        head = [str(row["blocks"]), f"{row['weights'] / 1e6:.0f} M"]
        lines.append(
            "| " + " | ".join([*head, f"{row['weights'] / least['weights']:.0f}", *cells]) + " |"
        )
    return lines


def _sharing_part(found: dict[str, Any]) -> list[str]:
    lines = [
        "## With and without what is shared",
        "",
        f"The same search of {found['candidates']} candidates that mask five of SmolLM2-135M's"
        " thirty blocks, with a sample in proportion, seed and number of evaluations equal, in"
        f" {found['turns']} turn(s); all archives (expressions, fingerprints, losses) are asserted"
        " to be equal. Medians; ratios are taken within a turn. A copy is one of the whole model,"
        " so it weighs more here than where all blocks are masked.",
        "",
        "| switched off | candidates a minute | × | judged again |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        again = ", ".join(f"{count} {rung}" for rung, count in row["judged_again"].items())
        lines.append(f"| {row['off']} | {row['per_minute']:.1f} | {row['ratio']:.2f} | {again} |")
    lines += ["", *(f"- {name}: {told}." for name, told in SHARED.items())]
    lines += [
        "",
        "Beside fingerprints, canonical forms save no time: every duplicate that they spare would"
        " have been stopped by its fingerprint on the probe, which takes milliseconds. (This table"
        " once said 0.77, because duplicates were judged on all rungs of their twins.) They keep"
        " places in a batch for candidates that are new, and serve the analysis and the report."
        " The form has been reduced to half its rules since this was measured.",
    ]
    lines += [
        "",
        "Not separable with the same archive:",
        "",
        "- Forward passes in bfloat16: losses differ from the fourth decimal on; what they save"
        " is [measured apart](judging.md).",
        "- The rungs and the surrogate: they decide who is judged at all. What judging everyone on"
        " all windows would cost follows from the first table.",
        "- A prefix of unchanged blocks: every candidate masks every block, so there is none.",
        "- Statistics: without them kept, every candidate would wait for a calibration.",
    ]
    return lines


def _profile_part(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Where the time is",
        "",
        f"The functions of this project by cumulative time in one such search under cProfile,"
        f" {found['seconds']:.0f} s.",
        "",
        "| cumulative, s | own, s | calls | function |",
        "|---|---|---|---|",
    ]
    for line in found["text"].splitlines()[1:]:
        cumulative, own, calls, where = line.split(maxsplit=3)
        lines.append(f"| {cumulative} | {own} | {calls} | `{where}` |")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
