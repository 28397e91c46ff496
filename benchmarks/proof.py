"""Models × methods × {texts, divergence, last words, tasks}, a cell a file, and their table.

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

Products of the blocks are taken in bfloat16 and logits in float32; give all cells of a model the
same --dtype. news.txt is `lee_background.cor`, 299 articles of 2001, from the wheel of gensim 4.4.0
(`pip download --no-deps gensim==4.4.0`, and unzip it).
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
    Groups,
    blocks_in_bfloat16,
    cloze,
    compared,
    cut,
    markdown,
    passages,
    results,
    rounded,
    script_parser,
    spread,
    write_table,
)

CELLS = results("proof")
# Windows that the dense model wrote, after those that calibrations use.
WRITTEN, FIRST_WRITTEN = 6, 72
# Passages of all texts.
PASSAGES = 500
TASKS = ("local_piqa", "local_arc_easy", "local_hellaswag")
# The first questions of each task, which all cells were asked.
FIRST = (400, 400, 200)
# What `prune` does where no metric is named.
DEFAULT = "default"
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
TITLES = {
    "50": "50 %",
    "2-4": "2:4",
    "70": "70 %",
    "channels-25": "a quarter of the channels removed",
    "heads-33": "a third of the key-value heads removed",
}


HEADER = (
    *("model and method", "wikitext", "pydoc", "news", "bits per byte", "divergence"),
    *("last words", "beside Wanda", "right choice", "beside Wanda", "minutes"),
)


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
    yield Cell("Wanda, its own text", "50", "wanda", "self", {"windows": 64})
    for zeros, masks in MASKS.items():
        for words, metric in masks.items():
            yield Cell(words, zeros, metric)
        yield Cell("SparseGPT", zeros, "sparsegpt")
    yield Cell("default", "channels-25", DEFAULT, "self")
    for label, metric in OF_HEADS.items():
        yield Cell(label, "heads-33", f"{metric}+distill=40", "self")


def main() -> None:
    """Fill the cells of a model that are missing, and write the table."""
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
    parser.add_argument("--pruned", nargs="*", default=[], metavar="CELL=FOLDER")
    parser.add_argument("--only", nargs="*", help="names of cells, all where left out")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    given = parser.parse_args()
    if given.model != "page":
        fill_cells(given)
    write_table("proof", table())


def fill_cells(given: argparse.Namespace) -> None:
    """Fill the cells that are missing."""
    cells = {cell.name: cell for cell in all_cells()}
    folders: dict[str, Path] = {}
    for pair in given.pruned:
        name, _, folder = pair.partition("=")
        folders[name] = Path(folder)
        if not folders[name].is_dir():
            raise SystemExit(f"--pruned {pair}: there is no such folder")
        zeros = next(zeros for zeros in TITLES if name.startswith(f"{zeros}-"))
        label = name.removeprefix(f"{zeros}-").replace("-", " ")
        cells.setdefault(name, Cell(label, zeros, "as the folder says"))
    for name in cells if given.only is None else given.only:
        file = CELLS / given.model / f"{name}.json"
        if not file.exists():
            print(name, flush=True)
            row = fill(cells[name], folders.get(name), given)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(row) + "\n")
            print(" | ".join(cells_of(row, {}, None)), flush=True)


def fill(cell: Cell, folder: Path | None, given: argparse.Namespace) -> dict[str, Any]:
    """Prune one cell, or read its `folder`, and measure it."""
    model, row = make(cell, folder, given)
    row["dtype"] = str(model.model.dtype).removeprefix("torch.")
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
    if given.tasks:
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


def table() -> str:
    """All cells: for each model and pattern the dense model, then the methods, best first."""
    shown = []
    for folder in sorted(path for path in CELLS.iterdir() if path.is_dir()):
        rows = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        # Of the same tokens, so that all have the same bytes.
        bits = {
            text["tokens_sha256"]: text["bits_per_byte"] / fmean(text["losses"])
            for row in rows.values()
            for text in row["texts"].values()
            if "bits_per_byte" in text
        }
        for zeros, title in TITLES.items():
            chosen = [row for name, row in rows.items() if name.startswith(f"{zeros}-")]
            wanda = rows.get(f"{zeros}-wanda")
            for row in sorted(chosen, key=mean_loss):
                label = f"{folder.name}, {title}: {row['label']}"
                shown.append([label, *cells_of(row, bits, wanda)[1:]])
        if "dense" in rows:
            label = f"{folder.name}: dense"
            shown.append([label, *cells_of(rows["dense"], bits, rows.get("50-wanda"))[1:]])
    return markdown(*cut(HEADER, shown))


def cells_of(
    row: Mapping[str, Any], bits: Mapping[str, float], wanda: Mapping[str, Any] | None
) -> list[str]:
    """The cells of a row, empty where something was not measured.

    bits: bits per byte of a loss of one nat, by the hash of the tokens. wanda: the cell that last
    words and right choices are compared with, passage by passage and question by question.
    """
    texts = list(row["texts"].values())
    cells = [row["label"], *(f"{text['perplexity']:.2f}" for text in texts)]
    each = [bits.get(text["tokens_sha256"], math.nan) * fmean(text["losses"]) for text in texts]
    cells.append("" if math.isnan(fmean(each)) else f"{fmean(each):.3f}")
    known = all("divergences" in text for text in texts)
    cells.append(f"{fmean(fmean(text['divergences']) for text in texts):.3f}" if known else "")
    if "cloze" in row:
        nats, error = spread(last_words(row))
        base = last_words(wanda) if wanda and "cloze" in wanda else None
        cells += [f"{nats:.2f} ± {error:.2f}", compared(last_words(row), base, 1, 2)]
    else:
        cells += ["", ""]
    if "tasks" in row:
        base = right(wanda) if wanda and "tasks" in wanda else None
        cells += [f"{100 * first(right(row)):.1f}", compared(right(row), base)]
    else:
        cells += ["", ""]
    return [*cells, f"{row['seconds']['seconds'] / 60:.0f}" if "seconds" in row else ""]


def mean_loss(row: Mapping[str, Any]) -> float:
    """The mean over the texts of the log-perplexity."""
    return sum(math.log(text["perplexity"]) for text in row["texts"].values()) / len(row["texts"])


def last_words(row: Mapping[str, Any]) -> Groups:
    """The nats of the last words, by text and passage."""
    return {text: passages["nats"] for text, passages in row["cloze"].items()}


def right(row: Mapping[str, Any]) -> Groups:
    """The probability of the right choice, by task and question."""
    return {task: row["tasks"][task]["probabilities"] for task in TASKS}


def first(answers: Groups) -> float:
    """The mean over the tasks, on the `FIRST` questions."""
    means = [sum(answers[task][:n]) / n for task, n in zip(TASKS, FIRST, strict=True)]
    return float(sum(means)) / len(means)


if __name__ == "__main__":
    main()
