"""The page of `paper.py`, from its result file."""

import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paper_protocol import DENSE, GRADIENT_SEQLEN, PAPER, PERPLEXITY, PUBLISHED_TREE, published
from pruner_zero.files import write_atomic
from tables import markdown, zeros_title

SCORES = ("acc", "acc_norm")
# The page's names for settings that may differ from the paper's.
NAMES = {
    "calibration": "calibration text",
    "gradients": f"text for the gradients of `{PUBLISHED_TREE}`",
    "text": "text for perplexity",
    "windows": "calibration windows",
    "windows_eval": "only the first windows for perplexity",
    "tasks": "tasks",
    "include_path": "tasks from files of the folder",
    "limit": "only the first questions of each task",
}


def write_page(table: dict[str, Any], command: str, page: Path, output: Path) -> None:
    """Write `page`; `output` is the result file, which the page links to."""
    settings, cells = table["settings"], table["cells"]
    link = os.path.relpath(output, page.parent)
    calibrated = f"{settings['windows']} random windows of {settings['seqlen']} tokens"
    gradients = min(settings["seqlen"], GRADIENT_SEQLEN)
    lines = [
        f"# The paper's tables on {settings['model']}",
        "",
        f"Made by `{command}`, after the protocol of Pruner-Zero"
        f" ([2406.02924](https://arxiv.org/abs/2406.02924)): calibrated on {calibrated} of"
        f" {settings['calibration']} (seed 0), the gradients of `{PUBLISHED_TREE}` taken on as many"
        f" windows of {gradients} tokens of {settings['gradients']}; blocks in order; perplexity"
        f" per token on windows of {settings['seqlen']} tokens of {settings['text']}; weights in"
        f" {settings['dtype']}. [Result file]({link}).",
        *_differences(settings),
        *_perplexity(settings, cells),
        *_tasks(settings, cells),
        *_origin(cells),
    ]
    write_atomic(page, "\n".join([*lines, ""]))


def _differences(settings: dict[str, Any]) -> list[str]:
    """The settings that differ from the paper's; empty where none does."""
    column = settings["published"]
    models = ", ".join(published())
    rows = [] if column else [("model", models, settings["model"])]
    if column and settings["seqlen"] != (seqlen := published()[column]["seqlen"]):
        rows.append(("tokens in a window", str(seqlen), str(settings["seqlen"])))
    rows += [
        (name, _setting(PAPER[key]), _setting(settings[key]))
        for key, name in NAMES.items()
        if settings[key] != PAPER[key]
    ]
    if not rows:
        return []
    notice = "Not all settings are the paper's:"
    if column is None:
        notice = (
            "This is a proof of the protocol, on a model that the paper does not have and with the"
            " settings below. Its numbers are not the paper's and do not compare with them."
        )
    table = markdown(("setting", "the paper's", "here"), rows)
    return ["", f"**{notice}**", "", table.rstrip()]


def _setting(value: object) -> str:
    if value is None:
        return "–"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _perplexity(settings: dict[str, Any], cells: list[dict[str, Any]]) -> list[str]:
    column = published()[settings["published"]] if settings["published"] else {}
    header, beside = ["method"], []
    for zeros in settings["zeros"]:
        header.append(zeros_title(zeros))
        if zeros in column:
            beside.append(zeros)
            header.append("published")
    rows = []
    for label in settings["methods"]:
        row = [f"`{label}`"]
        for zeros in settings["zeros"]:
            cell = _find(cells, zeros, label, PERPLEXITY)
            row.append("–" if cell is None else _number(cell["perplexity"]))
            if zeros in beside:
                figure = column["dense"] if label == DENSE else column[zeros].get(label)
                row.append("" if figure is None else _number(figure))
        rows.append(row)
    table = markdown(header, rows).rstrip()
    return ["", "## Perplexity", "", *_windows(cells), table, *_expressions(cells)]


def _windows(cells: list[dict[str, Any]]) -> list[str]:
    """The windows that all perplexities were measured on."""
    text = next((cell["text"] for cell in cells if cell["measure"] == PERPLEXITY), None)
    if text is None:
        return []
    windows = f"{text['windows']} windows of {text['seqlen']} tokens of {text['text']}"
    return [f"On the first {windows} (SHA-256 of the text {text['text_sha256'][:12]}).", ""]


def _expressions(cells: Iterable[dict[str, Any]]) -> list[str]:
    """The metric of each method whose label does not contain it."""
    lines = {
        f"`{cell['method']}` at {zeros_title(cell['zeros'])}: `{cell['pruned']['expression']}`"
        + (f", compared by {scope}." if (scope := cell["pruned"]["scope"]) else ".")
        for cell in cells
        if "EVOLVED" in cell["method"]
    }
    return ["", *sorted(lines)] if lines else []


def _tasks(settings: dict[str, Any], cells: list[dict[str, Any]]) -> list[str]:
    lines = []
    for zeros in settings["task_zeros"] if settings["tasks"] else []:
        lines += ["", f"## Zero-shot tasks at {zeros_title(zeros)}"]
        for score in SCORES:
            lines += _scores(settings, cells, zeros, score)
    return lines


def _scores(
    settings: dict[str, Any], cells: list[dict[str, Any]], zeros: str, score: str
) -> list[str]:
    """A table of one kind of score, so that no table or mean mixes the two kinds."""
    scored = {
        (label, task): cell
        for label in settings["methods"]
        for task in settings["tasks"]
        if (cell := _find(cells, zeros, label, task)) and cell.get(score) is not None
    }
    names = {task for _, task in scored}
    tasks = [task for task in settings["tasks"] if task in names]
    if not tasks:
        return []
    rows = []
    for label in settings["methods"]:
        values = [scored.get((label, task), {}).get(score) for task in tasks]
        present = [value for value in values if value is not None]
        mean = statistics.mean(present) if len(present) == len(tasks) else None
        rows.append([f"`{label}`", *map(_percent, [*values, mean])])
    errors = [cell[f"{score}_stderr"] for cell in scored.values() if cell[f"{score}_stderr"]]
    questions = sorted({cell["documents"] for cell in scored.values()})
    count = f"{questions[0]} to {questions[-1]}" if len(questions) > 1 else str(questions[0])
    return [
        "",
        f"`{score}` in percent, {count} questions a task; standard errors up to"
        f" {_percent(max(errors, default=None))}.",
        "",
        markdown(("method", *tasks, f"mean of {len(tasks)}"), rows).rstrip(),
    ]


def _origin(cells: list[dict[str, Any]]) -> list[str]:
    """The versions and machines that the numbers were measured with."""
    lines = set()
    for cell in cells:
        origin = cell["provenance"]
        names = ("torch", "transformers", "lm_eval")
        versions = ", ".join(f"{name} {origin[name]}" for name in names if name in origin)
        where = ", ".join(origin.get("gpus", [f"{cell['device']}, {origin['threads']} threads"]))
        lines.add(f"{versions}, commit {origin['git']}, on {where}.")
    return ["", *sorted(lines)] if lines else []


def _find(
    cells: list[dict[str, Any]], zeros: str, label: str, measure: str
) -> dict[str, Any] | None:
    key = (DENSE if label == DENSE else zeros, label, measure)
    return next((c for c in cells if (c["zeros"], c["method"], c["measure"]) == key), None)


def _number(value: float | None) -> str:
    return "overflow" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
