"""Models × methods × {texts, divergence, last words, tasks}, a cell a file, and the page of them.

    python benchmarks/proof.py smollm2 builtin:smollm2-135m --calibration wiki.valid.raw \\
        --texts wikitext=wiki.test.raw pydoc=builtin:pydoc/test news=news.txt \\
        --windows-eval 8 --tasks zero-shot --items 400 400 200
    python benchmarks/proof.py page

A cell is a model pruned by one method: its perplexity on each text, its divergence from the dense
model's predictions there and on windows that the dense model wrote itself (not those of the
calibration), the nats of the last words of passages of the texts, and for each task the accuracy
and the probability of every question's right choice. Cells that are there are kept, so that a run
that was cut goes on; --only names the cells to fill. Differences between two cells are paired by
question or passage. To measure a folder that is there, a cell's name or a new one:

    python benchmarks/proof.py smollm2 builtin:smollm2-135m --texts … --pruned 50-mine=FOLDER \\
        --only 50-mine

A cell without last words, agreement or tasks is completed where it is the dense model or its folder
is there (--pruned or --folders). Products of the blocks are taken in bfloat16 and logits in
float32; give all cells of a model the same --dtype. news.txt is `lee_background.cor`, 299 articles
of 2001, from the wheel of gensim 4.4.0 (`pip download --no-deps gensim==4.4.0`, and unzip it).
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pruner_zero import prune
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.devices import torch_threads
from pruner_zero.files import write_atomic
from pruner_zero.measuring.perplexity import perplexity
from pruner_zero.measuring.tasks import evaluate_tasks, load_tasks
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.predictions import compare_predictions
from pruner_zero.settings.evaluate_settings import EvaluateSettings
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.token_windows import Windows, consecutive_windows
from tables import (
    HERE,
    Groups,
    blocks_in_bfloat16,
    cloze,
    compared,
    markdown,
    passages,
    results,
    rounded,
    script_parser,
    spread,
)

CELLS = results("proof")
# Pruned models, with --folders.
FOLDERS = Path("runs/proof")
# Windows that the dense model wrote, after those that calibrations use.
WRITTEN, FIRST_WRITTEN = 6, 72
# Passages of all texts.
PASSAGES = 500
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
# The metric of an earlier default, with scores in part relative to the norm of their row.
RELATIVE = "W * (O * X)^0.73 * row_normalize(W * X^0.73)^0.33@global"

# Masks alone.
MASKS: Mapping[str, Mapping[str, str]] = {
    "50": {
        "magnitude": "magnitude",
        "Wanda": "wanda",
        "RIA": "ria",
        "published tree": "pruner-zero",
        "evolved on SmolLM2": CARRIED,
        "relative rows": RELATIVE,
    },
    "2-4": {
        "magnitude": "magnitude",
        "Wanda": "wanda",
        "RIA": "ria",
        "published tree": "pruner-zero",
        "evolved on SmolLM2": CARRIED.removesuffix("@global"),
    },
    "70": {"Wanda": "wanda"},
}
# One step after each of these masks.
STEPPED = ("magnitude", "Wanda", "RIA", "published tree", "evolved on SmolLM2")
STEPS: Mapping[str, str] = {"with swaps": "+refine", "with least squares": "+exact"}
ZEROS: Mapping[str, Mapping[str, Any]] = {
    "50": {"sparsity": 0.5},
    "2-4": {"pattern": "2:4"},
    "70": {"sparsity": 0.7},
}
# Whole units in place of weights.
UNITS: Mapping[str, Mapping[str, Any]] = {
    "channels-25": {"structure": "channels", "sparsity": 0.25},
    "heads-33": {"structure": "heads", "sparsity": 0.3334},
}
# By which heads go, with the refit and 40 steps of distillation.
OF_HEADS: Mapping[str, str] = {"Wanda": "wanda", "evolved": "X * row_normalize(W * X)"}
# The cells that others are compared with, by the header of the column; None where not filled.
Bases = Mapping[str, dict[str, Any] | None]

TITLES = {
    "50": "50 %",
    "2-4": "2:4",
    "70": "70 %",
    "channels-25": "a quarter of the channels removed",
    "heads-33": "a third of the key-value heads removed",
}


@dataclass(frozen=True)
class Cell:
    """A row of the table of a model: how it is pruned.

    method: as `prune` takes it or `DEFAULT`, None for the dense model. calibration: "text" or
    "self". settings: other keywords of `prune`.
    """

    label: str
    zeros: str = "50"
    method: str | None = None
    calibration: str = "text"
    settings: Mapping[str, Any] = field(default_factory=dict)

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
    of_own_text = {"windows": 64, "mode": "one-shot"}
    yield Cell("Wanda, its own text", "50", "wanda", "self", of_own_text)
    for zeros, masks in MASKS.items():
        for words, metric in masks.items():
            yield Cell(words, zeros, metric)
        yield Cell("SparseGPT", zeros, "sparsegpt")
    for zeros, masks in MASKS.items():
        for label in [label for label in STEPPED if len(masks) > 1]:
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
        "--no-written",
        action="store_true",
        help="leave out windows that the dense model writes: with many words it is slow",
    )
    parser.add_argument(
        "--folders",
        action="store_true",
        help=f"prune into {FOLDERS}, so that a run that was cut goes on after its last block",
    )
    parser.add_argument("--pruned", nargs="*", default=[], metavar="CELL=FOLDER")
    parser.add_argument("--only", nargs="*", help="names of cells, all where left out")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--threads", type=int, help="CPU threads, as many as torch chooses")
    given = parser.parse_args()
    if given.model != "page":
        with torch_threads(given.threads):
            fill_cells(given)
    write_atomic(HERE / "proof.md", page())


def fill_cells(given: argparse.Namespace) -> None:
    """Fill the cells that are missing, and complete those whose model is there."""
    cells = {cell.name: cell for cell in all_cells()}
    folders = {name: FOLDERS / given.model / name for name in cells if given.folders}
    for pair in given.pruned:
        name, _, folder = pair.partition("=")
        folders[name] = Path(folder)
        if not folders[name].is_dir():
            raise SystemExit(f"--pruned {pair}: there is no such folder")
        zeros = next(zeros for zeros in TITLES if name.startswith(f"{zeros}-"))
        label = name.removeprefix(f"{zeros}-").replace("-", " ")
        cells.setdefault(name, Cell(label, zeros, "as the folder says"))
    for name in cells if given.only is None else given.only:
        cell, folder = cells[name], folders.get(name)
        file = CELLS / given.model / f"{name}.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        there = cell.method is None or (folder is not None and folder.exists())
        if not old or (there and lacking(old, given)):
            print(name, flush=True)
            row = fill(cell, folder, old, given)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(row) + "\n")
            if given.texts:
                print(texts_table([row]), predictions_table([row], {}), sep="\n", flush=True)


def lacking(row: Mapping[str, Any], given: argparse.Namespace) -> set[str]:
    """What is asked for and not in `row` yet."""
    measures = ["cloze", *([] if given.no_written else ["agreement"])] if given.texts else []
    return {*measures, *(["tasks"] if given.tasks else [])} - row.keys()


def fill(
    cell: Cell, folder: Path | None, old: Mapping[str, Any], given: argparse.Namespace
) -> dict[str, Any]:
    """Prune one cell, or read its `folder`, and measure what is not in `old`."""
    model, made = make(cell, folder, given)
    row = {**made, **old, "dtype": str(model.model.dtype).removeprefix("torch.")}
    missing = lacking(old, given)
    if missing - {"tasks"}:
        # Loaded after pruning, which takes the more memory.
        dense = model if cell.method is None else load_model(given.source, given.dtype)
        written = None
        if not given.no_written:
            written = self_windows(dense, WRITTEN, 1024, 0, first=FIRST_WRITTEN)
        texts = dict(text.split("=", 1) for text in given.texts)
        with blocks_in_bfloat16(model.model), blocks_in_bfloat16(dense.model):
            row |= measure(model, dense, texts, given.windows_eval, written)
        # Tasks need the memory, and no dense model.
        del dense
    if "tasks" in missing:
        with blocks_in_bfloat16(model.model):
            row["tasks"] = ask(model, given.tasks, given.items)
    return row


def make(
    cell: Cell, folder: Path | None, given: argparse.Namespace
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model of a cell, and how it was made."""
    zeros = {**ZEROS, **UNITS}[cell.zeros] if cell.method is not None else {}
    row: dict[str, Any] = {"label": cell.label, "method": cell.method, **zeros}
    if cell.method is None:
        return load_model(given.source, given.dtype), row
    calibration, settings = "self", {**cell.settings, **zeros}
    if cell.calibration == "text":
        calibration, settings["windows"] = given.calibration, given.windows
    settings |= {"calibration": calibration, "dtype": given.dtype}
    method = None if cell.method == DEFAULT else cell.method
    if folder is None:
        model = load_model(given.source, given.dtype)
        result = prune(model, method, **settings)
        record, row["seconds"] = result.to_json(), result.cost.to_json()
    else:
        if not folder.exists():
            prune(given.source, method, output=folder, **settings)
        model = load_model(folder, given.dtype)
        record = json.loads((folder / "pruning.json").read_text())
        row["seconds"] = json.loads((folder / "timing.json").read_text())
    return model, row | {name: record[name] for name in ("calibration", "sparsity", "parameters")}


def measure(
    model: LanguageModel,
    dense: LanguageModel,
    texts: Mapping[str, str],
    count: int,
    written: Windows | None,
) -> dict[str, Any]:
    """Perplexity, divergence and last words on each text; divergence on `written` windows."""
    row: dict[str, Any] = {"texts": {}, "cloze": {}}
    for number, (name, source) in enumerate(texts.items()):
        corpus = load_corpus(source, role="test")
        windows = consecutive_windows(corpus, model.tokenizer, 1024, count)
        measured = perplexity(model, windows).to_json()
        compared = compare_predictions(model.model, dense.model, windows.tokens)
        row["texts"][name] = {
            "perplexity": measured["perplexity"],
            "bits_per_byte": measured["bits_per_byte"],
            "losses": rounded(measured["losses"]),
            "tokens_sha256": measured["text"]["tokens_sha256"],
            "divergences": rounded(compared.nats),
            "agreements": rounded(compared.agreed),
        }
        wanted = (PASSAGES + len(texts) - 1 - number) // len(texts)
        row["cloze"][name] = cloze(model, passages(corpus.text, wanted, random.Random(0)))
    if written is not None:
        compared = compare_predictions(model.model, dense.model, written.tokens)
        row |= {"divergence": compared.divergence, "agreement": compared.agreement}
    return row


def ask(model: LanguageModel, folder: Path, items: Sequence[int] | None) -> dict[str, Any]:
    """Accuracies and the probabilities of the right choices, by task."""
    answers = {}
    for task, limit in zip(TASKS, items or (None,) * len(TASKS), strict=True):
        asked = EvaluateSettings(
            model=model.name, tasks=task, limit=limit, include_path=str(folder)
        )
        result = evaluate_tasks(load_tasks(asked), model, asked)
        (row,) = result.rows
        answers[task] = {
            **{name: row[name] for name in ("documents", "acc", "acc_norm", "prob")},
            "probabilities": [round(value, 4) for value in result.probabilities[task]],
        }
    return answers


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
    """The tables of texts, and where they were measured of last words, tasks and moved answers."""
    shown = [texts_table([dense, *sorted(rows, key=mean_loss)])]
    closed = [row for row in rows if "cloze" in row]
    if closed:
        of_words = sorted(closed, key=lambda row: spread(last_words(row))[0])
        shown.append(predictions_table([dense, *of_words], bases))
    asked = [row for row in rows if "tasks" in row]
    # The page of a run that was cut before the dense model was asked has no tasks.
    if asked and "tasks" in dense:
        bases = {n: base if base and "tasks" in base else None for n, base in bases.items()}
        of_tasks = sorted(asked, key=lambda row: (-questions(row), -average(row, "prob")))
        of_moved = sorted(asked, key=lambda row: first(moved(row, dense)))
        shown.append(tasks_table([dense, *of_tasks], bases))
        shown.append(moved_table(of_moved, dense, bases))
    return shown


def texts_table(rows: Sequence[dict[str, Any]]) -> str:
    """Perplexities, the mean of the bits per byte, divergence and minutes, a row a method.

    Divergences that were not measured together with the agreement are of other windows.
    """
    # A cell without bits has the same tokens, and so the same bytes, as one with them.
    bits = {
        text["tokens_sha256"]: text["bits_per_byte"] / fmean(text["losses"])
        for row in rows
        for text in row["texts"].values()
        if "bits_per_byte" in text
    }
    cells = []
    for row in rows:
        texts = row["texts"].values()
        values = [f"{text['perplexity']:.2f}" for text in texts]
        if bits:
            each = [bits.get(t["tokens_sha256"], math.nan) * fmean(t["losses"]) for t in texts]
            values.append("" if math.isnan(fmean(each)) else f"{fmean(each):.3f}")
        mark = "" if "agreement" in row else " *"
        values.append(f"{row['divergence']:.3f}{mark}" if "divergence" in row else "")
        values.append(f"{row['seconds']['seconds'] / 60:.0f}" if "seconds" in row else "")
        cells.append([row["label"], *values])
    header = ["method", *rows[0]["texts"], *["bits per byte"] * bool(bits)]
    return markdown([*header, "divergence", "minutes"], cells)


def predictions_table(rows: Sequence[dict[str, Any]], bases: Bases) -> str:
    """Last words, and how far the predictions are from the dense model's, a row a method."""
    cells = []
    for row in rows:
        if "cloze" not in row:
            continue
        nats, error = spread(last_words(row))
        values = [f"{nats:.2f} ± {error:.2f}"]
        for base in bases.values():
            other = last_words(base) if base and "cloze" in base else None
            values.append(compared(last_words(row), other, 1, 2))
        values.append(f"{100 * spread(last_words(row, 'right'))[0]:.1f}")
        texts = row["texts"].values()
        for name, scale, digits in (("divergences", 1, 3), ("agreements", 100, 1)):
            means = [sum(text[name]) / len(text[name]) for text in texts]
            values.append(f"{scale * sum(means) / len(means):.{digits}f}")
        values.append(f"{100 * row['agreement']:.1f}" if "agreement" in row else "")
        cells.append([row["label"], *values])
    header = ["last words", "nats", *bases, "right", "divergence, texts", "agreement, texts"]
    return markdown([*header, "agreement, written"], cells)


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


def last_words(row: Mapping[str, Any], name: str = "nats") -> Groups:
    """The nats of the last words, or another value of each, by text and passage."""
    return {text: passages[name] for text, passages in row["cloze"].items()}


def right(row: Mapping[str, Any]) -> Groups:
    """The probability of the right choice, by task and question."""
    return {task: row["tasks"][task]["probabilities"] for task in TASKS}


def moved(row: Mapping[str, Any], dense: Mapping[str, Any]) -> Groups:
    """By task and question, how far the right choice's probability is from the dense model's.

    Source: answers that change, in the place of accuracy alone: Dutta et al. 2024 (2407.09141),
    who count the questions whose answer becomes wrong or right.
    """
    pairs = {task: zip(right(row)[task], right(dense)[task], strict=False) for task in TASKS}
    return {task: [abs(mine - other) for mine, other in pairs[task]] for task in TASKS}


def first(answers: Groups) -> float:
    """The mean over the tasks, on the `FIRST` questions."""
    means = [sum(answers[task][:n]) / n for task, n in zip(TASKS, FIRST, strict=True)]
    return float(sum(means)) / len(means)


def average(row: Mapping[str, Any], name: str) -> float:
    """The mean of a number over the tasks."""
    return float(sum(task[name] for task in row["tasks"].values())) / len(row["tasks"])


if __name__ == "__main__":
    main()
