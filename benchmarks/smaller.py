"""Models of a given size: bits per byte, from the files of `evaluate --output`.

    pruner-zero prune builtin:smollm2-135m --structure channels --sparsity 0.25 -o small.gguf
    pruner-zero evaluate small.gguf --text wiki.txt --text pydoc.txt --text news.txt \\
        --dtype float32 -o benchmarks/results/smaller/smollm2-135m/quarter.json
    python benchmarks/smaller.py

The texts are the first 60,000 bytes of WikiText-2 test and of the news of proof.md, and as many
characters of the test part of Python's documentation. A row is a file of `ROWS`.
"""

from collections.abc import Mapping

from tables import bits_per_byte, script_parser, write_page

# By model, the files without their ending, and the options of `prune`; the first is dense.
ROWS: Mapping[str, Mapping[str, str]] = {
    "smollm2-135m": {
        "dense": "dense, 134.5 M parameters",
        "quarter": "`--structure channels --sparsity 0.25`, 114.6 M",
        "quarter-cut": "the same, `--reconstruct 0 --distill 0`",
        "quarter-equal": "the same, `--widths equal --metric wanda --windows 192`",
        "quarter-all": "all kinds, `--parameters 114.6M --reconstruct 0 --distill 0`",
        "three-quarters": "all kinds, `--parameters 0.75`",
        "three-texts-512": "`--parameters 100M`, twice its own text, 512 windows, 160 steps",
        "three-texts-384": "`--parameters 100M`, three texts, 384 windows, 120 steps",
        "recover-10": "then `recover --minutes 10`",
        "recover-30": "the same, 30 minutes",
        "recover-60": "the same, 60 minutes",
        "recover-10-512": "the same, 10 minutes, 96 windows of 512 tokens",
        "recover-10-own": "the same, with text that the smaller model wrote",
        "recover-10-teacher": "the same, 10 minutes, `--teacher-share 1`",
        "three-texts-192": "three texts, 192 windows, two passes, 40 steps",
        "equal-384": "as three texts, 384 windows, `--widths equal`",
    },
    "smollm2-135m-as-cut": {
        "dense": "dense, 134.5 M parameters",
        "all": "all kinds, `--parameters 100M`",
        "equal": "the same, `--widths equal`",
        "channels": "the same, `--structure channels`",
        "wanda-sp": "`--structure channels --metric 'sqrt(W * X)'`, equal widths",
        "flap": "channels by FLAP's rule",
        "blocks": "`--structure blocks`: whole blocks by block influence",
    },
    "qwen2.5-coder-1.5b": {
        "dense": "dense, 1777.1 M parameters",
        "three-quarters": "`--parameters 0.75`, three texts, 192 windows, two passes, 30 steps",
    },
}


def main() -> None:
    """Write the page."""
    script_parser(__doc__).parse_args()
    text = (
        "# One budget\n\nMade by `python benchmarks/smaller.py`: bits per byte, and how much "
        "higher they are than the dense model's.\n"
    )
    write_page("smaller", text + bits_per_byte("smaller", "model", ROWS))


if __name__ == "__main__":
    main()
