"""The figure at the top of the README: perplexity after pruning, by method.

    python benchmarks/headline.py

Draws benchmarks/headline.svg from the rows of results/proof/smollm2, which benchmarks/proof.py
wrote: SmolLM2-135M, the first 8 windows of WikiText-2 test.
"""

import json
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruner_zero.files import write_atomic
from tables import HERE, results, script_parser

CLASSIC, OURS = "#9aa5b1", "#0b5cad"
# Name of the result file → (label in the figure, whether this program adds a part of the method).
ROWS = {
    "wanda": ("Wanda", False),
    "sparsegpt": ("SparseGPT", False),
    "evolved-on-smollm2": ("evolved mask", True),
    "default": ("default", True),
}


def main() -> None:
    """Draw both panels."""
    script_parser(__doc__).parse_args()
    figure = Figure(figsize=(8.6, 2.7), layout="constrained")
    for axes, zeros in zip(figure.subplots(1, 2), ("50", "2-4"), strict=True):
        draw(axes, zeros)
    save(figure, HERE / "headline.svg")


def save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG whose text depends on nothing but the figure."""
    data = BytesIO()
    with rc_context({"svg.hashsalt": "pruner-zero"}):
        figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
    # Matplotlib ends lines of paths in blanks.
    text = "\n".join(line.rstrip() for line in data.getvalue().decode().splitlines())
    write_atomic(file, text + "\n")


def draw(axes: Axes, zeros: str) -> None:
    """Draw a bar for each method measured at this pattern of zeros, and the dense model's line."""
    rows = results("proof") / "smollm2"
    bars = [
        (label, ours, perplexity(file))
        for name, (label, ours) in ROWS.items()
        if (file := rows / f"{zeros}-{name}.json").exists()
    ]
    names, dense = [name for name, _, _ in bars], perplexity(rows / "dense.json")
    values = [value for _, _, value in bars]
    axes.barh(names, values, color=[OURS if ours else CLASSIC for _, ours, _ in bars], height=0.7)
    for position, value in enumerate(values):
        axes.text(value, position, f" {value:.1f}", va="center", fontsize=8)
    axes.axvline(dense, color="#333333", linewidth=0.8, linestyle="--")
    axes.text(dense, -0.62, f"dense {dense:.1f}", fontsize=7, va="bottom", ha="center")
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.set_xlim(0, 1.15 * max(values))
    title = "50 % of the weights zero" if zeros == "50" else "2:4, two of every four weights zero"
    axes.set_title(title, fontsize=9, pad=12)
    axes.set_xlabel("perplexity, lower is better", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def perplexity(file: Path) -> float:
    """Of WikiText-2, in a row of proof.py."""
    return float(json.loads(file.read_text())["texts"]["wikitext"]["perplexity"])


if __name__ == "__main__":
    main()
