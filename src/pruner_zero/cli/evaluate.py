"""`pruner-zero evaluate`: the perplexity of a model, and its scores in tasks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruner_zero.cli import options
from pruner_zero.cli.progress import progress
from pruner_zero.cli.tables import print_table
from pruner_zero.errors import PrunerZeroError

if TYPE_CHECKING:
    from pruner_zero.evaluation import Perplexity, Score, TaskResult


def evaluate(
    model: options.Model,
    text: Annotated[str | None, typer.Option(help=options.TEXT, show_default=False)] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens in a window.")] = 1024,
    windows: Annotated[
        int | None, typer.Option(help="Only the first windows. [default: all]", show_default=False)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated tasks of lm-eval, such as arc_easy,boolq.", show_default=False
        ),
    ] = None,
    task_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of task files (.yaml) of your own; they come before lm-eval's.",
            show_default=False,
        ),
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(
            help="Examples before each question. [default: the task's own, else 0]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first questions of each task. [default: all]", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions of tasks at once.")] = 1,
    dtype: options.DtypeText = None,
    device: options.DeviceText = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for the result.", show_default=False),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure MODEL's perplexity per token on a text, its scores in tasks, or both."""
    from pruner_zero.devices import find_devices
    from pruner_zero.evaluation import evaluate as run
    from pruner_zero.files import check_writable, write_atomic, writing
    from pruner_zero.models import check_dtype, load_model
    from pruner_zero.text import load_corpus

    if text is None and tasks is None:
        raise PrunerZeroError("give --text to measure perplexity on, --tasks, or both")
    if output is not None:
        check_writable(output)
    given: dict[str, Any] = {
        "dtype": check_dtype(dtype or "auto"),
        "device": device or "auto",
        "progress": progress(),
    }
    find_devices(given["device"])
    corpus = load_corpus(text, role="test", progress=given["progress"]) if text else None
    loaded = load_model(model, given["dtype"], given["device"]) if text and tasks else model
    scores = perplexity = None
    if tasks is not None:
        scores = run(
            loaded,
            tasks=tasks,
            fewshot=fewshot,
            limit=limit,
            task_folder=task_folder,
            batch_size=batch_size,
            **given,
        )
    if corpus is not None:
        perplexity = run(loaded, corpus, seqlen=seqlen, windows=windows, **given)
    found = {
        key: value
        for result in (perplexity, scores)
        if result is not None
        for key, value in result.to_json().items()
    }
    if output is not None:
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, json.dumps(found, indent=2) + "\n")
    if as_json:
        print(json.dumps(found))
        return
    if scores is not None:
        _print_scores(scores)
    if perplexity is not None:
        _print_perplexity(perplexity)


def _print_scores(result: "TaskResult") -> None:
    named = [(metric, f"{metric} stderr") for metric in result.metrics]
    header = ("task", "version", "fewshot", "documents", *(name for pair in named for name in pair))
    rows = [
        (
            task.task,
            task.version or "",
            "" if task.fewshot is None else str(task.fewshot),
            str(task.documents),
            *(cell for name in result.metrics for cell in _cells(task.scores.get(name))),
        )
        for task in result.tasks
    ]
    if len(rows) > 1:
        means = [result.mean(metric) for metric in result.metrics]
        cells = [cell for mean in means for cell in ("" if mean is None else f"{mean:.4f}", "")]
        rows.append(("mean", "", "", "", *cells))
    print_table(header, rows, left=2)
    print(
        "acc takes the choice of the highest log-probability, acc_norm that of the highest per "
        f"character; lm-eval {result.provenance['lm_eval']}"
    )


def _cells(score: "Score | None") -> tuple[str, str]:
    if score is None:
        return "", ""
    error = score.standard_error
    return f"{score.value:.4f}", "" if error is None else f"{error:.4f}"


def _print_perplexity(result: "Perplexity") -> None:
    described = result.text
    print(
        f"perplexity {result.perplexity:.2f} per token on {described['windows']} windows of "
        f"{described['seqlen']} tokens of {described['text']} "
        f"({described['joined']}, sha256 {described['text_sha256'][:12]})"
    )
