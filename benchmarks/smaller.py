"""Smaller models, and models with fewer tokens: bits per byte, from files of `evaluate --output`.

    pruner-zero prune builtin:smollm2-135m --structure channels --sparsity 0.25 -o small.gguf
    pruner-zero evaluate small.gguf --text wiki.txt --text pydoc.txt --text news.txt \\
        --dtype float32 -o benchmarks/results/smaller/smollm2-135m/quarter.json
    python benchmarks/smaller.py

Writes the tables of smaller.md and vocabulary.md. The texts are the first 60,000 bytes of
WikiText-2 test and of the news of proof.md, and as many characters of the test part of Python's
documentation. A row is a file of `ROWS`.
"""

import json
from collections.abc import Mapping

from tables import markdown, results, script_parser, write_table

TEXTS = ("WikiText-2", "Python docs", "news")
# By page and model, the files without their ending, and what was done; the first is dense.
ROWS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "smaller": {
        "smollm2-135m": {
            "dense": "SmolLM2-135M, dense, 134.5 M parameters",
            "quarter": "`--structure channels --sparsity 0.25`, 114.6 M",
            "quarter-cut": "the same, `--reconstruct 0 --distill 0`",
            "quarter-all": "all kinds, `--parameters 114.6M --reconstruct 0 --distill 0`",
            "three-quarters": "all kinds, `--parameters 0.75`",
            "three-texts-512": "`--parameters 100M`, twice its own text, 512 windows, 160 steps",
            "three-texts-384": "`--parameters 100M`, three texts, 384 windows, 120 steps",
            "recover-10": "then `recover --minutes 10`",
            "recover-30": "the same, 30 minutes",
            "recover-60": "the same, 60 minutes",
        },
        "smollm2-135m-as-cut": {
            "all": "as cut: all kinds, `--parameters 100M`",
            "channels": "as cut: `--structure channels --parameters 100M`",
            "wanda-sp": "as cut: channels of equal widths by `sqrt(W * X)`",
            "flap": "as cut: channels by FLAP's rule",
            "blocks": "as cut: `--structure blocks`, block influence",
        },
        "qwen2.5-coder-1.5b": {
            "dense": "Qwen2.5-Coder-1.5B, dense, 1777.1 M parameters",
            "three-quarters": "`--parameters 0.75`, three texts, 192 windows, 2 passes, 30 steps",
        },
    },
    "vocabulary": {
        "gemma3-270m": {
            "dense": "Gemma 3 270M, 262,144 tokens, 268.1 M parameters",
            "65536": "65,536 tokens, 142.3 M",
            "65536-counted": "the same number, by their count in the text alone, then in order",
            "65536-reserved": "65,536, of which 6242 reserve a number; for the two rows below",
            "65536-recovered": "these, then 40 steps of `recover` on the counted text and its own",
            "65536-half": "these, then half of its weights zero by `prune`",
            "half": "262,144 tokens, half of the weights zero by `prune`",
        },
        "qwen2.5-coder-1.5b": {
            "dense": "Qwen2.5-Coder-1.5B, 151,936 tokens, 1777.1 M parameters",
            "51466": "51,466 tokens, 1468.4 M",
        },
        "smollm2-135m": {
            "dense": "SmolLM2-135M, 49,152 tokens, 134.5 M parameters",
            "24576": "24,576 tokens, 120.4 M",
            "24576-counted": "the same number, by their count in the text alone, then in order",
            "24576-recovered": "by their count, then ten minutes of `recover` on text of the model",
            "channels": "49,152 tokens, 44 % of the channels removed by `prune`, 99.7 M",
            "24576-channels": "24,576 tokens, then 25 % of the channels removed, 100.5 M",
        },
    },
}
# Rows of models that are measured elsewhere are beside this dense model.
DENSE = {"smollm2-135m-as-cut": "smollm2-135m"}


def main() -> None:
    """Write the tables of both pages."""
    script_parser(__doc__).parse_args()
    for page, models in ROWS.items():
        rows = [
            row
            for model, labels in models.items()
            for row in bits_per_byte(f"{page}/{model}", f"{page}/{DENSE.get(model, model)}", labels)
        ]
        write_table(page, markdown(["model", *TEXTS], rows))


def bits_per_byte(folder: str, dense: str, labels: Mapping[str, str]) -> list[list[str]]:
    """Rows of bits per byte, and how much higher they are than the dense model's.

    folder: under results, with a file of `evaluate --output` for each of `labels`. dense: the
    folder of the dense model's file.
    """
    below = _bits(dense, "dense")
    rows = []
    for name, label in labels.items():
        pairs = zip(_bits(folder, name), below, strict=True)
        rows.append([label, *(f"{bits:.3f} ({100 * (bits / d - 1):+.1f} %)" for bits, d in pairs)])
    return rows


def _bits(folder: str, name: str) -> list[float]:
    texts = json.loads((results(folder) / f"{name}.json").read_text())["texts"]
    return [text["bits_per_byte"] for text in texts]


if __name__ == "__main__":
    main()
