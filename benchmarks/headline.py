"""The figure at the top of the README: perplexity after pruning, by method.

    python benchmarks/headline.py

Draws benchmarks/headline.svg from results/updates-50.json and updates-2-4.json, which
benchmarks/methods.py wrote: SmolLM2-135M, the first 12 windows of WikiText-2 test.
"""

import json
import math
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruner_zero.files import write_atomic
from tables import HERE, results, script_parser

DENSE, WINDOWS = 25.88, 12
CLASSIC, OURS = "#9aa5b1", "#0b5cad"
# Label in the result file → (label in the figure, whether this program adds a part of the method).
ROWS = {
    "wanda": ("Wanda", False),
    "sparsegpt": ("SparseGPT", False),
    "EVOLVED": ("evolved mask", True),
    "wanda+refine": ("Wanda + swaps", True),
    "EVOLVED+refine": ("evolved + swaps", True),
    "wanda+refine+asymmetric+exact": ("Wanda + swaps + LS", True),
    "EVOLVED+refine+asymmetric+exact": ("evolved + swaps + LS", True),
    "W * (O * X)^0.75@global+refine+asymmetric+exact+distill=40": (
        "evolved + swaps + LS + 40 steps",
        True,
    ),
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
    rows = json.loads(results(f"updates-{zeros}.json").read_text())["rows"]
    losses = {row["label"]: row["losses"][:WINDOWS] for row in rows}
    bars = [
        (name, ours, math.exp(sum(losses[label]) / WINDOWS))
        for label, (name, ours) in ROWS.items()
        if label in losses
    ]
    names = [name for name, _, _ in bars]
    values = [value for _, _, value in bars]
    axes.barh(names, values, color=[OURS if ours else CLASSIC for _, ours, _ in bars], height=0.7)
    for position, value in enumerate(values):
        axes.text(value, position, f" {value:.1f}", va="center", fontsize=8)
    axes.axvline(DENSE, color="#333333", linewidth=0.8, linestyle="--")
    axes.text(DENSE, -0.62, f"dense {DENSE:.1f}", fontsize=7, va="bottom", ha="center")
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.set_xlim(0, 1.15 * max(values))
    title = "50 % of the weights zero" if zeros == "50" else "2:4, two of every four weights zero"
    axes.set_title(title, fontsize=9, pad=12)
    axes.set_xlabel("perplexity, lower is better", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


if __name__ == "__main__":
    main()
