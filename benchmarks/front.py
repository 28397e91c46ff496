"""What a file of fewer bytes costs: bits per byte of dense and pruned models, by type of GGUF.

    python benchmarks/front.py types both.gguf made --cyllama python
    python benchmarks/front.py measure SmolLM2-135M made/both-*.gguf --label both \\
        --wikitext wiki.test.raw --news news.txt
    python benchmarks/front.py page

`types` writes F16, Q8_0 and Q4_0 by this program, Q4_K_M and Q3_K_M by llama.cpp's quantizer.
`measure` takes any GGUF file that loads, also of another model; NAME is the model beside whose
dense F16 file it stands. `page` writes front.svg and the
table of front.md. news.txt is that of proof.py.
"""

import argparse
import json
import math
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import gguf
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from headline import save
from pruner_zero.choices import GgufType
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import sha256, write_json
from pruner_zero.measuring.perplexity import perplexity
from pruner_zero.models.gguf_file import save_gguf
from pruner_zero.models.gguf_header import read_header
from pruner_zero.models.gguf_source import read_source
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.provenance import provenance
from pruner_zero.text.corpus import Corpus, load_corpus
from pruner_zero.text.token_windows import consecutive_windows, start_of
from tables import HERE, markdown, results, script_parser, write_table

RESULTS, PYDOC = results("front.json"), "builtin:pydoc/test"
TYPES: Sequence[GgufType] = ("F16", "Q8_0", "Q4_0")
K_TYPES = ("Q4_K_M", "Q3_K_M")
# Of each text, so many pieces of so many characters are windows: the same bytes for any tokenizer.
PIECES, CHARACTERS = 8, 4000
MARKERS = {"F16": "o", "Q8_0": "s", "Q4_0": "v", "Q4_K_M": "D", "Q3_K_M": "P"}
# What `measure` writes of a file.
Point = Mapping[str, Any]
# Run by a Python that has the wheel: the file, the one to write, the number of its type.
QUANTIZE = (
    "from sys import argv\n"
    "from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize\n"
    "settings = LlamaModelQuantizeParams()\n"
    "settings.ftype = int(argv[3])\n"
    "model_quantize(argv[1], argv[2], settings)\n"
)


def main() -> None:
    """Write the types of a file, measure files, or write the page."""
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    types = commands.add_parser("types", help="write a file in each type")
    types.add_argument("file", type=Path)
    types.add_argument("folder", type=Path)
    types.add_argument("--cyllama", help="a Python that has this wheel; no k-quants without one")
    types.set_defaults(run=write_types)
    measure = commands.add_parser("measure", help="add files, in the place of earlier ones")
    measure.add_argument("name", help="of the model beside whose dense F16 file they stand")
    measure.add_argument("files", type=Path, nargs="+")
    measure.add_argument("--label", default="dense", help="what was done to it")
    measure.add_argument("--wikitext", type=Path, required=True)
    measure.add_argument("--news", type=Path, required=True)
    measure.set_defaults(run=measure_files)
    commands.add_parser("page", help="write the page").set_defaults(run=write_front)
    given = parser.parse_args()
    given.run(given)


def write_types(given: argparse.Namespace) -> None:
    """Write the file in each type, as FOLDER/STEM-TYPE.gguf."""
    given.folder.mkdir(parents=True, exist_ok=True)
    model = load_model(given.file, "float32").model
    source = read_source(given.file, given.file.name, model)
    names = [*TYPES, *(K_TYPES if given.cyllama else ())]
    files = {name: given.folder / f"{given.file.stem}-{name}.gguf" for name in names}
    for kind in TYPES:
        save_gguf(source, model, files[kind], kind, (), source.records)
    for name in names[len(TYPES) :]:
        number = int(gguf.LlamaFileType[f"MOSTLY_{name}"])
        command = [given.cyllama, "-c", QUANTIZE, files["F16"], files[name], str(number)]
        subprocess.run(command, check=True)


def measure_files(given: argparse.Namespace) -> None:
    """Measure each file on each text."""
    sources = {"WikiText-2": given.wikitext, "Python docs": PYDOC, "news": given.news}
    texts = {name: load_corpus(source, "test") for name, source in sources.items()}
    for file in given.files:
        header, weights = read_header(file, file.name), Counter[str]()
        for tensor in header.tensors.values():
            weights[tensor.type.name] += math.prod(tensor.shape)
        kind = gguf.LlamaFileType(header.fields["general.file_type"][0]).name
        model = load_model(file, "float32")
        key = {"name": given.name, "label": given.label, "type": kind.removeprefix("MOSTLY_")}
        point = {
            **key,
            "sha256": sha256(file),
            "bytes": file.stat().st_size,
            "parameters": weights.total(),
            "weights_by_type": weights,
            "texts": {name: bits_per_byte(model, text) for name, text in texts.items()},
            "provenance": provenance(),
        }
        points = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        others = [each for each in points if any(each[field] != key[field] for field in key)]
        write_json(RESULTS, [*others, point])


def bits_per_byte(model: LanguageModel, text: Corpus) -> dict[str, Any]:
    """What the model needs for a byte of the text's first pieces, each a window of its own."""
    nats, size, tokens, begin = 0.0, 0, 0, len(start_of(model.tokenizer))
    for first in range(0, PIECES * CHARACTERS, CHARACTERS):
        piece = Corpus(text.name, text.text[first : first + CHARACTERS])
        length = begin + len(model.tokenizer(piece.text, add_special_tokens=False)["input_ids"])
        windows = consecutive_windows(piece, model.tokenizer, length, 1)
        nats += perplexity(model, windows).loss * (length - 1)
        size, tokens = size + (windows.text_bytes or 0), tokens + length
    counts = {"bytes": size, "tokens": tokens, "windows": PIECES, "text_sha256": text.sha256}
    return {"bits_per_byte": round(nats / math.log(2) / size, 5), **counts}


def write_front(_: argparse.Namespace) -> None:
    """Write the table and the picture of the page."""
    points, rows = json.loads(RESULTS.read_text()), []
    names = list(dict.fromkeys(point["name"] for point in points))
    figure = Figure(figsize=(4.3 * len(names), 4.2), layout="tight")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        chosen = sorted((p for p in points if p["name"] == name), key=lambda p: -p["bytes"])
        losses = above(chosen, name)
        rows += rows_of(chosen, losses)
        draw(axes, name, chosen, [fmean(each) for each in losses])
    save(figure, HERE / "front.svg")
    header = ["", "MB", "million parameters", *points[0]["texts"], "mean"]
    write_table("front", markdown(header, rows))


def above(points: Sequence[Point], name: str) -> list[list[float]]:
    """By how many percent each file needs more bits than the dense F16 file, on each text."""
    values = [[text["bits_per_byte"] for text in point["texts"].values()] for point in points]
    kinds = [(point["label"], point["type"]) for point in points]
    if ("dense", "F16") not in kinds:
        raise PrunerZeroError(f"measure {name} DENSE.gguf --label dense, a file of type F16, first")
    base = values[kinds.index(("dense", "F16"))]
    return [[100 * (b / d - 1) for b, d in zip(row, base, strict=True)] for row in values]


def rows_of(points: Sequence[Point], losses: Sequence[Sequence[float]]) -> list[list[str]]:
    """The files of a model, the largest first, with what each text loses; bold: none beats it."""
    means, rows = [fmean(each) for each in losses], []
    for point, each, mean in zip(points, losses, means, strict=True):
        others = zip(points, means, strict=True)
        behind = any(other["bytes"] < point["bytes"] and loss <= mean for other, loss in others)
        shown = f"{point['name']}, {point['label']}, {point['type']}"
        sizes = [f"{point[key] / 1e6:.1f}" for key in ("bytes", "parameters")]
        texts = zip(point["texts"].values(), each, strict=True)
        cells = [f"{text['bits_per_byte']:.3f} ({loss:+.1f} %)" for text, loss in texts]
        rows.append([shown if behind else f"**{shown}**", *sizes, *cells, f"{mean:+.1f} %"])
    return rows


def draw(axes: Axes, name: str, points: Sequence[Point], means: Sequence[float]) -> None:
    """Draw a line for each way, with a marker for each type."""
    for label in dict.fromkeys(point["label"] for point in points):
        both = zip(points, means, strict=True)
        way = sorted((p["bytes"] / 1e6, mean, p["type"]) for p, mean in both if p["label"] == label)
        (line,) = axes.plot(*zip(*(place for *place, _ in way), strict=True), label=label)
        for size, mean, kind in way:
            axes.plot(size, mean, MARKERS.get(kind, "x"), color=line.get_color())
    for kind in dict.fromkeys(point["type"] for point in points):
        axes.plot([], [], MARKERS.get(kind, "x"), color="gray", label=kind)
    axes.set(title=name, xscale="log", xlabel="MB of the file", ylabel="bits, % above dense F16")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


if __name__ == "__main__":
    main()
