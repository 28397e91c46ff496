"""Models with fewer tokens: bits per byte, from the files of `evaluate --output`.

    pruner-zero prune gemma.gguf --structure vocabulary --sparsity 0.75 \\
        --calibration builtin:pydoc --calibration wiki.valid.raw -o small
    pruner-zero evaluate small --text wiki.txt --text pydoc.txt --text news.txt --dtype float32 \\
        -o benchmarks/results/vocabulary/gemma3-270m/65536.json
    python benchmarks/vocabulary.py

The texts are the first 60,000 bytes of WikiText-2 test and of the news of proof.md, and as many
characters of the test part of Python's documentation; for Qwen2.5-Coder-1.5B, in bfloat16, the
first 16,000. A row is a file of `ROWS`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

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
# Lists of tokens for a draft, of version 0.3: how they were chosen.
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
    """Write the page."""
    script_parser(__doc__).parse_args()
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


if __name__ == "__main__":
    main()
