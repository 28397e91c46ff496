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
        "named": "all kinds and three texts, `--parameters 100M`",
        "named-cut": "the same, `--reconstruct 0 --distill 0`",
        "now-cut": "the same, first tokens counted in prices",
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
