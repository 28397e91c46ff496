"""The page of `search_cost.py`, from its result file."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruner_zero.evolution.evaluator import RUNGS
from tables import markdown
from unshared import SHARED

HERE = Path(__file__).parent


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
    }
    for name, write in writers.items():
        if name in report:
            lines += ["", *write(report[name])]
    (HERE / "search_cost.md").write_text("\n".join([*lines, ""]))


def _rungs_part(part: dict[str, Any]) -> list[str]:
    rungs, windows = part["rungs"], part["windows"]
    titles = {
        "rejection": "rejection, by form",
        "probe": "probe",
        "reconstruction": "reconstruction",
        "few": f"few ({windows['few']} windows)",
        "all": f"all ({windows['all']} windows)",
    }
    rest = 1 - sum(cost["share"] for cost in rungs.values())
    lines = [
        "## By rung",
        "",
        f"A search of {part['candidates']} candidates on SmolLM2-135M, windows of"
        f" {part['seqlen']} tokens, {part['seconds']:.0f} s, without a final race."
        " Rejection: whether a proposal can"
        " mask and is new, by its canonical form, before it becomes a candidate.",
        "",
        "| rung | asked | median | share of the time |",
        "|---|---|---|---|",
    ]
    for rung, title in titles.items():
        if rung in rungs:
            cost = rungs[rung]
            median = _time(cost["median_seconds"])
            lines.append(f"| {title} | {cost['count']} | {median} | {cost['share']:.1%} |")
    return [
        *lines,
        f"| drawing proposals, deciding, journal | | | {rest:.1%} |",
    ]


def _windows_part(part: dict[str, Any]) -> list[str]:
    seconds = {int(count): median for count, median in part["seconds"].items()}
    slope, start = statistics.linear_regression([*seconds], [*seconds.values()])
    row = ["seconds", *(f"{median:.1f}" for median in seconds.values())]
    return [
        "## By windows",
        "",
        f"Masking all matrices and the loss on so many windows of {part['seqlen']} tokens,"
        f" medians over three metrics and {part['repeats']} turns. The line through"
        f" them: {start:.1f} s, and {slope:.2f} s a window.",
        "",
        markdown(("windows", *map(str, seconds)), [row]).rstrip(),
    ]


def _sizes_part(part: dict[str, Any]) -> list[str]:
    least = part["rows"][0]
    rows = []
    for row in part["rows"]:
        cells = [
            f"{_time(row['seconds'][rung])} ({row['seconds'][rung] / least['seconds'][rung]:.1f}×)"
            for rung in RUNGS
        ]
        head = [str(row["blocks"]), f"{row['weights'] / 1e6:.0f} M"]
        rows.append([*head, f"{row['weights'] / least['weights']:.0f}", *cells])
    header = ["blocks", "weights", "×", "probe", "reconstruction"]
    header += [f"few ({part['few_windows']} window)", f"all ({part['search_windows']} windows)"]
    return [
        "## By size of the model",
        "",
        "Random models of SmolLM2-135M's width, bfloat16, windows of"
        f" {part['seqlen']} tokens; the median of a candidate, and how many times those of"
        " the smallest. The closed form looks at 8 M weights of any model: what grows is the number"
        " of statistics that these meet.",
        "",
        markdown(header, rows).rstrip(),
    ]


def _sharing_part(part: dict[str, Any]) -> list[str]:
    rows = []
    for row in part["rows"]:
        again = ", ".join(f"{count} {rung}" for rung, count in row["judged_again"].items())
        rows.append([row["off"], f"{row['per_minute']:.1f}", f"{row['ratio']:.2f}", again])
    return [
        "## With and without what is shared",
        "",
        f"The same search of {part['candidates']} candidates that mask five of SmolLM2-135M's"
        " thirty blocks, with a sample in proportion, seed and number of evaluations equal, in"
        f" {part['turns']} turn(s); all archives (expressions, fingerprints, losses) are asserted"
        " to be equal. Medians; × is the speed as a multiple of that with all of it, within a turn:"
        " below 1, the search is slower without it. A copy is one of the whole model, so it weighs"
        " more here than where all blocks are masked.",
        "",
        markdown(("switched off", "candidates a minute", "×", "judged again"), rows),
        "- subexpressions: a subtree that occurs twice in a formula was computed once; off: each"
        " time. It gained nothing, and was removed since.",
        *(f"- {name}: {meaning}." for name, meaning in SHARED.items()),
        "",
        "Beside fingerprints, canonical forms save no time: every duplicate that they spare would"
        " have been stopped by its fingerprint on the probe, which takes milliseconds. They keep"
        " places in a batch for candidates that are new, and serve the analysis and the report.",
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


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
