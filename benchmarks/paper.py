"""The paper's tables on a model: perplexity and zero-shot tasks at 50 %, 2:4 and 4:8.

    python benchmarks/paper.py meta-llama/Llama-2-7b-hf
    python benchmarks/paper.py ./my-llama --published L2-7B --offload --calibration c4.jsonl \
        --gradients wiki.train.raw --text wiki.test.raw --include-path my-tasks

The protocol of Dong et al. 2024 (arXiv 2406.02924), with the paper's settings as defaults. Every
number is a file in --folder, named after a hash of all settings that decide it: the same command
goes on after an interruption, and a number whose settings have changed is measured anew. A pruned
model stays in --folder until its numbers are there.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from paper_page import write_page
from paper_protocol import (
    METHODS,
    ONE_TEXT,
    PAPER,
    PERPLEXITY,
    PUBLISHED_TREE,
    Cell,
    LoadText,
    Row,
    cells,
    column_of,
    plan,
    published,
    weights_settings,
)
from pruner_zero import evaluate, prune
from pruner_zero.calibration.store import cache_key
from pruner_zero.choices import Dtype
from pruner_zero.cli.progress import LineProgress
from pruner_zero.devices import naming_out_of_memory
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evaluation.tasks import TaskResult
from pruner_zero.files import locked, write_json, writing
from pruner_zero.models import LanguageModel, load_model
from pruner_zero.progress import Progress
from pruner_zero.provenance import provenance
from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.source import Role
from updates import EVOLVED, TABLES

# Options that change nothing but the rounding of sums, or the places of files.
PLACE = ("device", "offload", "batch_size", "folder", "output", "page")
# The fields of pruning.json that a result file repeats.
DESCRIBED = ("expression", "pattern", "scope", "steps", "asymmetric", "sparsity", "calibration")


def options() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", help="a hub id, a folder, a .gguf file or builtin:smollm2-135m")
    parser.add_argument(
        "--published",
        choices=list(published()),
        help="the paper's model to stand beside, where the name of yours does not tell",
    )
    parser.add_argument("--zeros", nargs="+", default=["50", "2-4", "4-8"], choices=list(TABLES))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        help=f"as `compare` reads them; {EVOLVED}, as in {EVOLVED}+refine+asymmetric+exact, is the"
        f" winner of a search on SmolLM2, '{PUBLISHED_TREE}{ONE_TEXT}' the published tree with"
        " gradients of --calibration",
    )
    parser.add_argument("--calibration", help="text for all methods but the published tree")
    parser.add_argument("--gradients", help="text for the gradients of the published tree")
    parser.add_argument("--text", help="text that perplexity is measured on")
    parser.add_argument("--windows", type=int, help="calibration windows")
    parser.add_argument("--windows-eval", type=int, help="windows of --text, all where left out")
    parser.add_argument("--seqlen", type=int, help="tokens in a window, the paper's where left out")
    parser.add_argument("--tasks", nargs="*", help="tasks of lm-eval")
    parser.add_argument("--task-zeros", nargs="*", default=["50"], choices=list(TABLES))
    parser.add_argument("--include-path", help="folder of task files, which override lm-eval's own")
    parser.add_argument("--limit", type=int, help="only the first questions of each task")
    parser.add_argument("--batch-size", type=int, default=1, help="of perplexity and tasks")
    parser.add_argument("--device", default="auto")
    # The papers have float16, in which gradients vanish.
    parser.add_argument("--dtype", default="bfloat16", choices=get_args(Dtype))
    parser.add_argument("--offload", action="store_true", help="prune with the model on disk")
    parser.add_argument("--folder", type=Path, default=Path("runs/paper"))
    parser.add_argument("-o", "--output", type=Path, help="paper.json in --folder by default")
    parser.add_argument("--page", type=Path, help="paper.md in --folder by default")
    parser.set_defaults(**PAPER)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the numbers that are missing and write the page."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = options().parse_args(arguments)
    try:
        with locked(given.folder):
            run(given, f"python benchmarks/paper.py {shlex.join(arguments)}")
    except PrunerZeroError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@naming_out_of_memory("choose --offload, more devices, or a smaller --batch-size")
def run(given: argparse.Namespace, command: str) -> None:
    """Measure one model after the other. Raises PrunerZeroError."""
    progress = LineProgress()
    settings = settled(given)

    @cache
    def load_text(option: str) -> Corpus:
        role: Role = "test" if option == "text" else "calibration"
        return load_corpus(settings[option], role, progress=progress)

    planned = [(row, cells(row, settings, load_text)) for row in plan(settings)]
    everything = [cell for _, of_row in planned for cell in of_row]
    for row, of_row in planned:
        pruned = given.folder / f"pruned-{cache_key(weights_settings(row, settings, load_text))}"
        missing = [cell for cell in of_row if not (given.folder / cell.file).exists()]
        if missing:
            progress.note(f"{row.zeros}, {row.label}: {', '.join(c.measure for c in missing)}")
            model = weights(row, pruned, given, load_text, progress)
            for cell in missing:
                values = {
                    **measure(cell, model, given, load_text, progress),
                    "settings": cell.settings,
                    "device": str(model.device),
                    **describe(pruned),
                }
                write_json(given.folder / cell.file, values)
                write_table(given, command, settings, everything)
            del model
        shutil.rmtree(pruned, ignore_errors=True)
    # Folders of interrupted runs whose settings differ from those of this run.
    for left in given.folder.glob("pruned-*"):
        shutil.rmtree(left)
    write_table(given, command, settings, everything)


def settled(given: argparse.Namespace) -> dict[str, Any]:
    """All options that decide a number, as JSON values. Raises PrunerZeroError."""
    settings = {name: value for name, value in vars(given).items() if name not in PLACE}
    settings["published"] = column = given.published or column_of(given.model)
    if given.seqlen is None:
        if column is None:
            raise PrunerZeroError(
                f"the paper does not have the model {given.model}: give --seqlen, or with"
                " --published the name that the paper has for it"
            )
        settings["seqlen"] = published()[column]["seqlen"]
    return settings


def weights(
    row: Row, pruned: Path, given: argparse.Namespace, load_text: LoadText, progress: Progress
) -> LanguageModel:
    """The model of `row`, pruned into the folder `pruned` unless it is there."""
    place = {"dtype": given.dtype, "device": given.device}
    if not row.pruning:
        return load_model(given.model, **place)
    if not pruned.exists():
        prune(
            given.model,
            calibration=load_text(row.text) if row.text else None,
            output=pruned,
            # An unfinished run, perhaps of an earlier version of the program, may have left files.
            overwrite=True,
            offload=given.offload,
            progress=progress,
            **place,
            **row.pruning,
        )
    return load_model(pruned, **place)


def measure(
    cell: Cell,
    model: LanguageModel,
    given: argparse.Namespace,
    load_text: LoadText,
    progress: Progress,
) -> dict[str, Any]:
    """The measured values of a cell, as JSON values, with their provenance."""
    how: dict[str, Any] = {"batch_size": given.batch_size, "progress": progress}
    if cell.measure == PERPLEXITY:
        windows, seqlen = given.windows_eval, cell.settings["text_seqlen"]
        loss = evaluate(model, load_text("text"), windows=windows, seqlen=seqlen, **how)
        return {**loss.to_json(), "provenance": provenance()}
    local = {"include_path": given.include_path, "limit": given.limit}
    scores: TaskResult = evaluate(model, tasks=[cell.measure], **local, **how)
    row = next(row for row in scores.rows if row["task"] == cell.measure)
    return {**row, "provenance": dict(scores.provenance)}


def describe(pruned: Path) -> dict[str, Any]:
    """How a model was pruned, with time and memory; empty for the dense model."""
    if not pruned.exists():
        return {}
    record = json.loads((pruned / "pruning.json").read_text())
    cost = json.loads((pruned / "timing.json").read_text())
    return {"pruned": {**{name: record[name] for name in DESCRIBED}, **cost}}


def write_table(
    given: argparse.Namespace, command: str, settings: dict[str, Any], everything: list[Cell]
) -> None:
    """Write the result file and the page from the cells that are there."""
    rows = []
    for cell in everything:
        if (file := given.folder / cell.file).exists():
            names = {"zeros": cell.row.zeros, "method": cell.row.label, "measure": cell.measure}
            rows.append(names | json.loads(file.read_text()))
    table = {"settings": settings, "cells": rows}
    output = given.output or given.folder / "paper.json"
    page = given.page or given.folder / "paper.md"
    for file in (output, page):
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, table)
    write_page(table, command, page, output)


if __name__ == "__main__":
    main()
