"""Models with fewer tokens: bits per byte, from the files of `evaluate --output`.

    pruner-zero prune gemma.gguf --structure vocabulary --tokens 65536 \\
        --calibration builtin:pydoc --calibration wiki.valid.raw -o small
    pruner-zero evaluate small --text wiki.txt --text pydoc.txt --text news.txt --dtype float32 \\
        -o benchmarks/results/vocabulary/gemma3-270m/65536.json
    python benchmarks/vocabulary.py

    python benchmarks/vocabulary.py --lists gemma3-270m --model gemma.gguf --windows 64 \\
        --english wiki.valid.raw --text wiki.test.raw --prompts arc_easy.jsonl \\
        --prompts hellaswag.jsonl --prompts piqa.jsonl

The second form measures lists of tokens for a draft, as `prune --list` makes them.

The texts are the first 60,000 bytes of WikiText-2 test and of the news of proof.md, and as many
characters of the test part of Python's documentation; for Qwen2.5-Coder-1.5B, in bfloat16, the
first 16,000. A row is a file of `ROWS`.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.calibration.self_text import self_windows
from pruner_zero.files import write_json
from pruner_zero.models.load import load_model
from pruner_zero.provenance import provenance
from pruner_zero.settings.calibration import SHORT
from pruner_zero.structure.vocabulary import Vocabulary, expected_counts
from pruner_zero.text.corpus import load_corpus
from tables import bits_per_byte, markdown, results, script_parser, write_page

# By model, the files without their ending; the first is the dense model.
ROWS: Mapping[str, Mapping[str, str]] = {
    "gemma3-270m": {
        "dense": "262,144 tokens, 268.1 M parameters",
        "65536": "65,536 tokens, 142.3 M",
        "65536-counted": "the same number, by their count in the text alone, then in order",
        "65536-reserved": "65,536, of which 6242 reserve a number; for the two rows below",
        "65536-recovered": "these, then 40 steps of `recover` on the counted text and its own",
        "65536-half": "these, then half of its weights zero by `prune`",
        "half": "262,144 tokens, half of the weights zero by `prune`",
    },
    "qwen2.5-coder-1.5b": {
        "dense": "151,936 tokens, 1777.1 M parameters",
        "51466": "51,466 tokens, 1468.4 M",
    },
    "smollm2-135m": {
        "dense": "49,152 tokens, 134.5 M parameters",
        "24576": "24,576 tokens, 120.4 M",
        "24576-counted": "the same number, by their count in the text alone, then in order",
        "24576-recovered": "by their count, then ten minutes of `recover` on text of the model",
        "channels": "49,152 tokens, 44 % of the channels removed by `prune`, 99.7 M",
        "24576-channels": "24,576 tokens, then 25 % of the channels removed, 100.5 M",
    },
}
# Lists of tokens: their lengths, and how many windows of the model's text are held out.
SIZES, HELD_OUT = (16384, 32768, 65536), 12
LISTS: Mapping[str, str] = {
    "expected": "what the model expects in its text",
    "drawn": "the counts of that text",
    "english": "the counts of English text",
}
SHARES: Mapping[str, str] = {
    "own": "its own text",
    "likeliest": "its likeliest tokens",
    "prompts": "prompts",
    "text": "WikiText-2",
}


def main() -> None:
    """Write the page, or measure lists of tokens."""
    parser = script_parser(__doc__)
    parser.add_argument("--lists", help="the name of a model, to measure lists for a draft")
    parser.add_argument("--model", help="the model")
    parser.add_argument("--windows", type=int, default=96, help="windows of the model's text")
    parser.add_argument("--english", help="text that is counted beside builtin:pydoc")
    parser.add_argument("--text", help="text that is neither counted nor of the model")
    parser.add_argument("--prompts", action="append", help="a .jsonl file with a query a line")
    arguments = parser.parse_args()
    if arguments.lists:
        write_json(lists_of(arguments.lists), measured(arguments))
    text = (
        "# Models with fewer tokens\n\nMade by `python benchmarks/vocabulary.py`: bits per byte, "
        "and how much higher they are than the dense model's.\n"
    )
    text += bits_per_byte("vocabulary", "tokens", ROWS)
    rows = [
        [
            model,
            f"{row['tokens']:,}",
            LISTS[row["list"]],
            *(f"{100 * row[s]:.1f} %" for s in SHARES),
        ]
        for model in ROWS
        if lists_of(model).exists()
        for row in json.loads(lists_of(model).read_text())["lists"]
    ]
    header = ["model", "tokens", "chosen by", *SHARES.values()]
    write_page("vocabulary", f"{text}\n## Lists for a draft\n\n{markdown(header, rows)}")


def lists_of(model: str) -> Path:
    """The file with what was measured of lists of a model's tokens."""
    return results("vocabulary") / model / "lists.json"


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """The share of each text that is in lists of tokens of each length, chosen in each way."""
    model = load_model(arguments.model)

    def coded(text: str) -> Tensor:
        coded = model.tokenizer(text, add_special_tokens=False, verbose=False)
        return torch.tensor(coded["input_ids"])

    written = self_windows(model, arguments.windows, SHORT, 0)
    seen, held_out = written.tokens[:-HELD_OUT], written.tokens[-HELD_OUT:]
    expected = expected_counts(model, seen)
    likeliest = expected_counts(model, held_out, likeliest=True)
    lines = [line for file in arguments.prompts for line in Path(file).read_text().splitlines()]
    prompts = "\n".join(json.loads(line)["query"] for line in lines)
    english = coded(load_corpus("builtin:pydoc").text + load_corpus(arguments.english).text)
    # Nothing predicts the first token of a window.
    texts = {"own": held_out[:, 1:], "prompts": coded(prompts)}
    texts["text"] = coded(load_corpus(arguments.text).text)
    ways = {"expected": expected}
    for name, tokens in (("drawn", seen), ("english", english)):
        ways[name] = tokens.flatten().bincount(minlength=len(expected))
    rows = []
    for size in SIZES:
        for name, counts in ways.items() if size < len(expected) else ():
            tokens = torch.tensor(Vocabulary(0.0, tokens=size).listed(model, seen, counts))
            shares = {
                text: float(torch.isin(t, tokens).double().mean()) for text, t in texts.items()
            }
            shares["likeliest"] = float(likeliest[tokens].sum() / likeliest.sum())
            rows.append({"tokens": size, "list": name, **shares})
    distinct = {name: int((ways[name] > 0).sum()) for name in ("drawn", "english")}
    own = {"windows": written.describe(), "held_out": HELD_OUT, "distinct": distinct}
    sizes = {name: tokens.numel() for name, tokens in {"english": english, **texts}.items()}
    return {**provenance(), "text": own, "tokens": sizes, "lists": rows}


if __name__ == "__main__":
    main()
