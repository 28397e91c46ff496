"""Models × methods × {texts, divergence, tasks}, a cell a file, and the page of them.

    python benchmarks/proof.py smollm2 builtin:smollm2-135m --calibration wiki.valid.raw \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt \\
        --windows-eval 8 --tasks zero-shot --items 400 400 200
    python benchmarks/proof.py page

A cell is a model pruned by one method: its perplexity on each text, its divergence from the dense
model's predictions on windows that the dense model wrote itself (not those of the calibration),
and for each task the accuracy and the probability of every question's right choice. Cells that are
there are kept, so that a run that was cut goes on; --only names the cells to fill. Differences
between two cells are paired by question. news.txt is `lee_background.cor`, 299 articles of 2001,
from the wheel of gensim 4.4.0 (`pip download --no-deps gensim==4.4.0`, and unzip it).
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor

from pruner_zero import prune, recover
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.evaluation.perplexity import perplexity
from pruner_zero.evaluation.tasks import evaluate_tasks
from pruner_zero.files import write_atomic
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.windows import consecutive_windows
from tables import HERE, markdown, results, script_parser

CELLS = results("proof")
# Pruned models that cells recover, and with --folders those of all cells.
FOLDERS = Path("runs/proof")
# Windows that the dense model wrote, after those that calibrations use.
WRITTEN, FIRST_WRITTEN = 6, 72
TASKS = ("local_piqa", "local_arc_easy", "local_hellaswag")
# The first questions of each task, which all cells were asked.
FIRST = (400, 400, 200)
ACCURACIES = ("acc", "acc_norm")
NOTES = results("proof-notes.md")
# The part of the notes below the tables begins here.
RESULTS = "## What holds, and what does not"
# The methods that all others are compared with, question by question.
BASES = ("Wanda", "SparseGPT")
# What `prune` does where no metric is named, and the words of rows by what it did before.
DEFAULT, EARLIER = "default", "earlier default"
CARRIED = "W * (O * X)^0.75@global"
EVOLVED_ON_GEMMA = "W * G^0.75@global"
# The metric of the default, with scores in part relative to the norm of their row.
RELATIVE = "W * (O * X)^0.73 * row_normalize(W * X^0.73)^0.33@global"

# Masks alone.
MASKS: Mapping[str, Mapping[str, str]] = {
    "50": {
        "magnitude": "magnitude",
        "Wanda": "wanda",
        "RIA": "ria",
        "published tree": "pruner-zero",
        "evolved on SmolLM2": CARRIED,
        "evolved on Gemma": EVOLVED_ON_GEMMA,
        "relative rows": RELATIVE,
    },
    "2-4": {
        "magnitude": "magnitude",
        "Wanda": "wanda",
        "RIA": "ria",
        "published tree": "pruner-zero",
        "evolved on SmolLM2": CARRIED.removesuffix("@global"),
    },
}
# Masks alone on text that the model wrote.
OF_OWN_TEXT: Mapping[str, str] = {
    "Wanda": "wanda",
    "mask of the default": RELATIVE,
    "mask of the earlier default": "W * (O * X)^0.73@global",
}
# One step after each of these masks.
STEPPED = ("magnitude", "Wanda", "RIA", "published tree", "evolved on SmolLM2")
STEPS: Mapping[str, str] = {"with swaps": "+refine", "with least squares": "+exact"}
ZEROS: Mapping[str, Mapping[str, Any]] = {"50": {"sparsity": 0.5}, "2-4": {"pattern": "2:4"}}
# Whole units in place of weights.
UNITS: Mapping[str, Mapping[str, Any]] = {
    "channels-25": {"structure": "channels", "sparsity": 0.25},
    "heads-33": {"structure": "heads", "sparsity": 0.3334},
}
# By which heads go, with the refit and 40 steps of distillation.
OF_HEADS: Mapping[str, str] = {"Wanda": "wanda", "evolved": "X * row_normalize(W * X)"}
# Values by task and question.
Answers = Mapping[str, Sequence[float]]
# The cells that others are compared with, by the header of the column; None where not filled.
Bases = Mapping[str, dict[str, Any] | None]

TITLES = {
    "50": "50 %",
    "2-4": "2:4",
    "channels-25": "a quarter of the channels removed",
    "heads-33": "a third of the key-value heads removed",
}


@dataclass(frozen=True)
class Cell:
    """A row of the table of a model: how it is pruned.

    method: as `prune` takes it or `DEFAULT`, None for the dense model. calibration: "text" or
    "self". settings: other keywords of `prune`. minutes: of `recover`, on text that the dense model
    writes, after the default.
    """

    label: str
    zeros: str = "50"
    method: str | None = None
    calibration: str = "text"
    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 0

    @property
    def name(self) -> str:
        """The name of the cell's file."""
        words = self.label.replace(",", "").replace(" ", "-").lower()
        return words if self.method is None else f"{self.zeros}-{words}"


def all_cells() -> Iterator[Cell]:
    """Every row of a model's tables."""
    yield Cell("dense")
    for zeros in ZEROS:
        yield Cell("default", zeros, DEFAULT, "self")
    yield Cell("default, recovered", "50", DEFAULT, "self", minutes=10)
    # Masks of a model whose swaps take hours.
    one_shot = {"windows": 64, "mode": "one-shot"}
    for words, metric in OF_OWN_TEXT.items():
        yield Cell(f"{words}, its own text", "50", metric, "self", one_shot)
    # Block by block from the disk, which leaves out the distillation; needs --folders.
    offloaded = {"windows": 64, "offload": True}
    yield Cell("default without distillation", "50", DEFAULT, "self", offloaded)
    for zeros, masks in MASKS.items():
        for words, metric in masks.items():
            yield Cell(words, zeros, metric)
        yield Cell("SparseGPT", zeros, "sparsegpt")
    for zeros, masks in MASKS.items():
        for label in STEPPED:
            for step, suffix in STEPS.items():
                yield Cell(f"{label} {step}", zeros, masks[label] + suffix)
    yield Cell("default", "channels-25", DEFAULT, "self")
    for label, metric in OF_HEADS.items():
        yield Cell(label, "heads-33", f"{metric}+distill=40", "self")


def main() -> None:
    """Fill the cells of a model that are missing, or write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("model", help="a name for the files, or `page`")
    parser.add_argument("source", nargs="?", help="what prune takes as MODEL")
    parser.add_argument("--calibration", help="WikiText-2 validation, raw")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--texts", nargs="*", default=[], metavar="NAME=TEXT")
    parser.add_argument("--windows-eval", type=int, default=12)
    parser.add_argument("--tasks", type=Path, help="the folder of task files, none if left out")
    parser.add_argument("--items", type=int, nargs=3, help="questions of each task, else all")
    parser.add_argument(
        "--no-divergence",
        action="store_true",
        help="leave out the divergence: a model with many words is slow to write its windows",
    )
    parser.add_argument(
        "--folders",
        action="store_true",
        help=f"prune into {FOLDERS}, so that a run that was cut goes on after its last block",
    )
    parser.add_argument("--only", nargs="*", help="names of cells, all where left out")
    given = parser.parse_args()
    if given.model != "page":
        for cell in all_cells():
            file = CELLS / given.model / f"{cell.name}.json"
            if (given.only is None or cell.name in given.only) and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, json.dumps(fill(cell, given)) + "\n")
    write_atomic(HERE / "proof.md", page())


def fill(cell: Cell, given: argparse.Namespace) -> dict[str, Any]:
    """Prune and measure one cell."""
    print(cell.name, flush=True)
    dense = None
    if cell.minutes or not given.no_divergence:
        dense = load_model(given.source)
    zeros = {**ZEROS, **UNITS}[cell.zeros] if cell.method is not None else {}
    row: dict[str, Any] = {"label": cell.label, "method": cell.method, **zeros}
    if cell.minutes:
        pruned = FOLDERS / given.model / cell.zeros
        if not pruned.exists():
            prune(given.source, output=pruned, **zeros)
        model = load_model(pruned)
        recovered = recover(model, teacher=dense, minutes=cell.minutes)
        row |= {"recovery": recovered.to_json(), "seconds": recovered.cost.to_json()}
    elif cell.method is not None:
        calibration, settings = "self", {**cell.settings, **zeros}
        if cell.calibration == "text":
            calibration, settings["windows"] = given.calibration, given.windows
        method = None if cell.method == DEFAULT else cell.method
        output = FOLDERS / given.model / cell.name if given.folders else None
        if output is None:
            model = load_model(given.source)
            result = prune(model, method, calibration=calibration, **settings)
            record, row["seconds"] = result.to_json(), result.cost.to_json()
        else:
            if not output.exists():
                prune(given.source, method, calibration=calibration, output=output, **settings)
            model, record = load_model(output), json.loads((output / "pruning.json").read_text())
            row["seconds"] = json.loads((output / "timing.json").read_text())
        row |= {name: record[name] for name in ("calibration", "sparsity", "parameters")}
    else:
        model = load_model(given.source)
    row["texts"] = {}
    for text in given.texts:
        name, _, source = text.partition("=")
        corpus = load_corpus(source, role="test")
        windows = consecutive_windows(corpus, model.tokenizer, 1024, given.windows_eval)
        measured = perplexity(model, windows).to_json()
        row["texts"][name] = {
            "perplexity": measured["perplexity"],
            "losses": [round(loss, 5) for loss in measured["losses"]],
            "tokens_sha256": measured["text"]["tokens_sha256"],
        }
    if dense is not None and not given.no_divergence:
        written = self_windows(dense, WRITTEN, 1024, 0, first=FIRST_WRITTEN)
        row["divergence"] = divergence(model, dense, written.tokens)
    if given.tasks:
        row["tasks"] = ask(model, given.tasks, given.items)
    return row


def ask(model: LanguageModel, folder: Path, items: Sequence[int] | None) -> dict[str, Any]:
    """Accuracies and the probabilities of the right choices, by task.

    The blocks compute in bfloat16, which two cores do at twice the speed of float32, and the
    logits in float32.
    """
    answers = {}
    with in_bfloat16(model):
        for task, limit in zip(TASKS, items or (None,) * len(TASKS), strict=True):
            asked = EvaluateSettings(
                model=model.name, tasks=task, limit=limit, include_path=str(folder)
            )
            result = evaluate_tasks(lambda: model, asked)
            (row,) = result.rows
            answers[task] = {
                **{name: row[name] for name in ("documents", "acc", "acc_norm", "prob")},
                "probabilities": [round(value, 4) for value in result.probabilities[task]],
            }
    return answers


@torch.no_grad()
def divergence(model: LanguageModel, dense: LanguageModel, windows: Tensor) -> float:
    """KL(dense ‖ model) in nats per token, the mean over `windows` (n, tokens)."""
    values = []
    for window in windows.split(1):
        wanted = dense.model(window, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        given = model.model(window, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        values.append(float((wanted.exp() * (wanted - given)).sum(-1).mean()))
    return sum(values) / len(values)


@contextmanager
def in_bfloat16(model: LanguageModel) -> Iterator[None]:
    """Compute the blocks of `model` in bfloat16 and its logits in float32."""
    head = model.model.get_output_embeddings()
    forward = head.forward

    def in_float32(hidden: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = forward(hidden.float())
        return logits

    head.forward = in_float32
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        del head.forward


def page() -> str:
    """The page of all cells."""
    reading, _, results = NOTES.read_text().partition(RESULTS)
    text = (
        "# Texts, divergence and tasks\n\nMade by `python benchmarks/proof.py smollm2"
        " builtin:smollm2-135m --calibration wiki.valid.raw --texts wikitext=wiki.test.raw"
        " pydoc=builtin:pydoc/test news=news.txt --windows-eval 8 --tasks zero-shot --items 400 400"
        f" 200`, and the same for each model, with the differences named below.\n\n{reading}"
    )
    for folder in sorted(path for path in CELLS.iterdir() if path.is_dir()):
        rows = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        if "dense" not in rows:
            continue
        for zeros, shown in TITLES.items():
            chosen = {name: row for name, row in rows.items() if name.startswith(f"{zeros}-")}
            if chosen:
                text += f"## {folder.name}, {shown}\n\n{tables(chosen, rows['dense'], zeros)}\n"
    return f"{text}\n{RESULTS}{results}"


def tables(rows: Mapping[str, dict[str, Any]], dense: dict[str, Any], zeros: str) -> str:
    """The tables of one model and pattern: texts, one step, tasks, moved answers.

    Earlier forms of the default have tables of their own after those of all other methods.
    """
    bases = {f"over {label}": rows.get(f"{zeros}-{label.lower()}") for label in BASES}
    stepped = [f"{label} {step}" for label in STEPPED for step in STEPS]
    methods = [row for row in rows.values() if row["label"] not in stepped]
    present = [row for row in methods if EARLIER not in row["label"]]
    shown = measured_tables(present, dense, bases)
    if len(methods) < len(rows):
        shown.insert(1, steps_table({row["label"]: row for row in rows.values()}))
    if len(present) < len(methods):
        earlier = [row for row in methods if EARLIER in row["label"]]
        shown += ["### Earlier forms of the default\n", *measured_tables(earlier, dense, bases)]
    return "\n".join(shown)


def measured_tables(
    rows: Sequence[dict[str, Any]], dense: dict[str, Any], bases: Bases
) -> list[str]:
    """The tables of texts, of tasks and of moved answers, the last two where tasks were asked."""
    shown = [texts_table([dense, *sorted(rows, key=mean_loss)])]
    asked = [row for row in rows if "tasks" in row]
    if asked:
        of_tasks = sorted(asked, key=lambda row: (-questions(row), -average(row, "prob")))
        of_moved = sorted(asked, key=lambda row: first(moved(row, dense)))
        shown.append(tasks_table([dense, *of_tasks], bases))
        shown.append(moved_table(of_moved, dense, bases))
    return shown


def texts_table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexities, divergence and minutes, a row a method."""
    cells = []
    for row in rows:
        values = [f"{text['perplexity']:.2f}" for text in row["texts"].values()]
        values.append(f"{row['divergence']:.3f}" if "divergence" in row else "")
        values.append(f"{row['seconds']['seconds'] / 60:.0f}" if "seconds" in row else "")
        cells.append([row["label"], *values])
    return markdown(["method", *rows[0]["texts"], "divergence", "minutes"], cells)


def steps_table(rows: Mapping[str, dict[str, Any]]) -> str:
    """Perplexities on the texts, a row a metric, a column what follows its mask."""
    cells = []
    for label in STEPPED:
        names = (label, *(f"{label} {step}" for step in STEPS))
        # A run that was cut has filled some of them.
        texts = [rows[name]["texts"] if name in rows else {} for name in names]
        values = [[f"{text['perplexity']:.1f}" for text in each.values()] for each in texts]
        cells.append([label, *map(" / ".join, values)])
    return markdown(["one step", "mask alone", *STEPS], cells)


def tasks_table(rows: Sequence[dict[str, Any]], bases: Bases) -> str:
    """The probabilities of the right choices and accuracies, a row a method."""
    cells = []
    for row in rows:
        values = [f"{100 * first(right(row)):.1f}", str(questions(row))]
        values.append(f"{100 * average(row, 'prob'):.1f}")
        values += [compared(right(row), base and right(base)) for base in bases.values()]
        values += [f"{100 * average(row, name):.1f}" for name in ACCURACIES]
        cells.append([row["label"], *values])
    header = ["tasks", f"first {sum(FIRST)}", "questions", "right choice", *bases, *ACCURACIES]
    return markdown(header, cells)


def moved_table(rows: Sequence[dict[str, Any]], dense: dict[str, Any], bases: Bases) -> str:
    """How far the probabilities are from the dense model's, a row a method."""
    cells = []
    for row in rows:
        answers = moved(row, dense)
        values = [compared(answers, base and moved(base, dense)) for base in bases.values()]
        cells.append([row["label"], f"{100 * first(answers):.1f}", str(questions(row)), *values])
    return markdown(["moved answers", f"first {sum(FIRST)}", "questions", *bases], cells)


def mean_loss(row: Mapping[str, Any]) -> float:
    """The mean over the texts of the log-perplexity."""
    return sum(math.log(text["perplexity"]) for text in row["texts"].values()) / len(row["texts"])


def questions(row: Mapping[str, Any]) -> int:
    """The number of questions that a cell was asked."""
    return sum(task["documents"] for task in row["tasks"].values())


def right(row: Mapping[str, Any]) -> Answers:
    """The probability of the right choice, by task and question."""
    return {task: row["tasks"][task]["probabilities"] for task in TASKS}


def moved(row: Mapping[str, Any], dense: Mapping[str, Any]) -> Answers:
    """By task and question, how far the right choice's probability is from the dense model's.

    Source: answers that change, in the place of accuracy alone: Dutta et al. 2024 (2407.09141),
    who count the questions whose answer becomes wrong or right.
    """
    pairs = {task: zip(right(row)[task], right(dense)[task], strict=False) for task in TASKS}
    return {task: [abs(mine - other) for mine, other in pairs[task]] for task in TASKS}


def first(answers: Answers) -> float:
    """The mean over the tasks, on the `FIRST` questions."""
    means = [sum(answers[task][:n]) / n for task, n in zip(TASKS, FIRST, strict=True)]
    return float(sum(means)) / len(means)


def average(row: Mapping[str, Any], name: str) -> float:
    """The mean of a number over the tasks."""
    return float(sum(task[name] for task in row["tasks"].values())) / len(row["tasks"])


def compared(answers: Answers, base: Answers | None) -> str:
    """The difference from a base in points, with half of its 95 % interval; nothing from itself."""
    if base is None or answers == base:
        return ""
    gain, error = difference(answers, base)
    return f"{100 * gain:+.1f} ± {100 * error:.1f}"


def difference(answers: Answers, base: Answers) -> tuple[float, float]:
    """How much higher the answers' values are than a base's, and half of its 95 % interval.

    Paired by question: the mean over the tasks of the mean over their questions. Of a task, a cell
    with fewer questions has the first ones of a cell with more, and these are compared.
    """
    means, variances = [], []
    for task, values in answers.items():
        pairs = zip(values, base[task], strict=False)
        differences = torch.tensor([mine - other for mine, other in pairs], dtype=torch.float64)
        means.append(float(differences.mean()))
        variances.append(float(differences.var()) / len(differences))
    error = math.sqrt(sum(variances)) / len(variances)
    return sum(means) / len(means), float(norm.ppf(0.975)) * error


if __name__ == "__main__":
    main()
