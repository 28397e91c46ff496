"""Why: what of a method makes the divergence from the dense model small, one factor at a time.

    python benchmarks/why.py builtin:smollm2-135m --text wiki.valid.raw
    python benchmarks/why.py gemma.gguf --of gemma3-270m --text wiki.valid.raw
    python benchmarks/why.py page

A row is a model pruned at 50 %, that differs from the row `base` in what its name says. It is
judged by KL from the dense model's predictions, in nats per token, on text that no row is
calibrated on and that is neither a test nor a task: the end of WikiText-2 validation, the end of
the part of Python's documentation for calibration, windows that the dense model wrote, and the
first 48 tokens of paragraphs of both, as a question of a task is short. Rows that are there are
kept; --only names the rows to fill.
"""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proof import FIRST_WRITTEN
from pruner_zero import prune
from pruner_zero.calibration.self_text import self_windows
from pruner_zero.choices import WRITTEN_TEXTS
from pruner_zero.files import write_atomic
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.predictions import compare_predictions
from pruner_zero.models.sampling import start_token
from pruner_zero.text.corpus import Corpus, load_corpus
from tables import blocks_in_bfloat16, markdown, results, script_parser, write_page

ROWS = results("why")
# Characters at the end of a text that no row is calibrated on.
KEPT = 120_000
# Tokens of a question of a task, about.
SHORT = 48
BASE: Mapping[str, Any] = {
    "metric": "wanda",
    "update": "exact",
    "calibration": "self",
    "windows": 96,
    "seqlen": 256,
    "sparsity": 0.5,
}
# The text of the command line, without its end.
TEXT = "wikitext"
FACTORS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "no least squares": {"update": "none"},
    "no least squares, 40 steps of distillation": {"update": "none", "distill": 40},
    "SparseGPT": {"metric": "sparsegpt", "update": None},
    "gradients, whole model": {"metric": "W * G^0.75@global"},
    "output gradients, whole model": {"metric": "W * (O * X)^0.73@global"},
    "swaps": {"refine": True},
    # Measured with the next row, to compare the text that the model writes: see the notes.
    "base again": {},
    "another seed of the text": {"seed": 1},
    "damping 0.1": {"damping": 0.1},
    "WikiText": {"calibration": TEXT},
    "WikiText, windows of 1024 tokens": {"calibration": TEXT, "windows": 24, "seqlen": 1024},
    "half WikiText": {"calibration": {"self": 1, TEXT: 1}},
    "half Python's documentation": {"calibration": {"self": 1, "pydoc": 1}},
    "a quarter of the windows": {"windows": 24},
    "twice the windows": {"windows": 192},
    "windows of 1024 tokens": {"windows": 24, "seqlen": 1024},
    "windows of 128 tokens": {"windows": 192, "seqlen": 128},
    "40 steps of distillation": {"distill": 40},
    # As many zeros as the other rows have: SmolLM2-135M has a quarter of a block's weights in
    # attention, and 30 blocks.
    "attention left alone": {"include": ("*.mlp.*",), "sparsity": 2 / 3},
    "the first and the last block left alone": {
        "exclude": ("*.layers.0.*", "*.layers.29.*"),
        "sparsity": 0.5 * 30 / 28,
    },
}
# The mask of the earlier default, on long windows, and how much distillation follows it.
MASK: Mapping[str, Any] = {
    "metric": "W * (O * X)^0.73@global",
    "calibration": "self",
    "windows": 24,
    "seqlen": 1024,
    "sparsity": 0.5,
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "mask, 40 steps": {"distill": 40},
    "mask, 160 steps": {"distill": 160},
}
# Steps after one mask, and the text that they are trained on. `self` of these models is documents.
WANDA: Mapping[str, Any] = {**BASE, "update": "none"}
MIXED = {"self:documents": 1, "self:chat": 1}
AFTER: Mapping[str, Mapping[str, Any]] = {
    "mask alone": {},
    "2 passes": {"reconstruct": 2},
    "4 passes": {"reconstruct": 4},
    "least squares, then 2 passes": {"update": "exact", "reconstruct": 2},
    "2 passes, dialogues": {"reconstruct": 2, "calibration": "self:chat"},
    "2 passes, half dialogues": {"reconstruct": 2, "calibration": MIXED},
}
# By the first column of a table: what all its rows share, and in what they differ.
TABLES = {
    "differs from `base` in": (BASE, FACTORS),
    "the earlier default's mask": (MASK, STEPS),
    "after Wanda's mask": (WANDA, AFTER),
}


def main() -> None:
    """Fill the rows that are missing, or write the page."""
    parser = script_parser(__doc__)
    parser.add_argument("model", help="what prune takes as MODEL, or `page`")
    parser.add_argument("--text", help="WikiText-2 validation, raw")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.add_argument("--of", default="", help="a name for the rows of another model")
    parser.add_argument("--only", nargs="*", help="names of rows, all where left out")
    given = parser.parse_args()
    if given.model != "page":
        pydoc = load_corpus("builtin:pydoc", role="calibration")
        texts = {TEXT: Path(given.text).read_text(), "pydoc": pydoc.text}
        rows = [(base, *row) for base, changed in TABLES.values() for row in changed.items()]
        for base, label, changes in rows:
            file = ROWS / given.of / f"{re.sub('[^a-z0-9.]+', '-', label.lower())}.json"
            if (given.only is None or label in given.only) and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                model = load_model(given.model, given.dtype)
                row = fill(model, label, {**base, **changes}, texts)
                write_atomic(file, json.dumps(row) + "\n")
    write_page("why", page())


def fill(
    model: LanguageModel, label: str, given: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Prune and measure one row."""
    print(label, flush=True)
    dense = LanguageModel(deepcopy(model.model), model.tokenizer, model.name)
    settings = dict(given)
    shares = settings.pop("calibration")
    calibration = {
        name if name in WRITTEN_TEXTS else Corpus(name, texts[name][:-KEPT]): share
        for name, share in (shares if isinstance(shares, Mapping) else {shares: 1}).items()
    }
    result = prune(model, settings.pop("metric"), calibration=calibration, **settings)
    row = {"label": label, "settings": dict(given), "seconds": result.cost.to_json()}
    windows = judged(dense, texts)
    with blocks_in_bfloat16(model.model), blocks_in_bfloat16(dense.model):
        compared = {
            name: compare_predictions(model.model, dense.model, tokens)
            for name, tokens in windows.items()
        }
    row["divergence"] = {name: result.divergence for name, result in compared.items()}
    return row


def judged(dense: LanguageModel, texts: Mapping[str, str]) -> dict[str, Tensor]:
    """The windows (n, tokens) of each kind that a row is judged by."""
    windows = of_texts(dense, texts)
    beginnings = windows.pop("short")
    written = self_windows(dense, 2, 1024, 0, first=FIRST_WRITTEN)
    return {**windows, "self": written.tokens, "short": beginnings}


def of_texts(dense: LanguageModel, texts: Mapping[str, str]) -> dict[str, Tensor]:
    """Those from the ends of the texts: windows of each, and beginnings of paragraphs."""

    def encode(text: str) -> list[int]:
        return list(dense.tokenizer(text, add_special_tokens=False)["input_ids"])

    windows: dict[str, Tensor] = {}
    beginnings = []
    for name, text in texts.items():
        tokens = torch.tensor(encode(text[-KEPT:]))[: 4 * 512]
        windows[name] = tokens.view(-1, 512)
        paragraphs = [part for part in re.split(r"\n\s*\n", text[-KEPT:]) if len(part) > 400]
        beginnings += [[start_token(dense), *encode(part)][:SHORT] for part in paragraphs[:40]]
    windows["short"] = torch.tensor(beginnings)
    return windows


def page() -> str:
    """The page of all rows, in the order of the tables."""
    text = (
        "# What each part of the method adds\n\nMade by `python benchmarks/why.py"
        " builtin:smollm2-135m --text wiki.valid.raw`.\n"
    )
    for folder in (ROWS, *sorted(path for path in ROWS.iterdir() if path.is_dir())):
        rows = {
            row["label"]: row for row in map(json.loads, map(Path.read_text, folder.glob("*.json")))
        }
        for header, (_, labels) in TABLES.items():
            if shown := [rows[label] for label in labels if label in rows]:
                of = "" if folder == ROWS else f"{folder.name}, "
                text += "\n" + table(of + header, shown)
    return text


def table(header: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The divergences of `rows`, which have the same texts."""
    names, cells = list(rows[0]["divergence"]), []
    for row in rows:
        values = [row["divergence"][name] for name in names]
        values.append(sum(values) / len(values))
        minutes = f"{row['seconds']['seconds'] / 60:.1f}"
        cells.append([row["label"], *(f"{value:.3f}" for value in values), minutes])
    return markdown([header, *names, "mean", "minutes"], cells)


if __name__ == "__main__":
    main()
