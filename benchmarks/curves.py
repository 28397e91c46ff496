"""Draws the lowest loss so far of searches: ours, random search and the paper's.

    python benchmarks/curves.py

Draws benchmarks/search-curves.svg from the summaries that benchmarks/search.py wrote, a panel for
each seed. The windows depend on the seed, so losses compare only within a panel.
"""

import argparse
import json
import math
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruner_zero.files import write_atomic
from pruner_zero.report.figures import style

HERE = Path(__file__).parent
COLORS = {"default": "#0b5cad", "published": "#b3541e", "random": "#7a8591"}
# The ends of the runs' names. The published evolution ran on gradients of shorter windows.
LABELS = {"default": "-products", "random": "-products", "published": "-pieces"}


def main() -> None:
    """Draw the runs that have a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    figure = Figure(figsize=(3.2 * len(given.seeds), 3), layout="constrained")
    panels = figure.subplots(1, len(given.seeds), squeeze=False)[0]
    for seed, axes in zip(given.seeds, panels, strict=True):
        losses = [draw(axes, name, f"{seed}{label}") for name, label in LABELS.items()]
        # The losses of the first minutes are far higher and would flatten the rest of the curve.
        axes.set_ylim(min(losses) - 0.02, min(losses) + 0.35)
        axes.set_title(f"seed {seed}", fontsize=10)
        axes.set_xlabel("minutes")
        axes.grid(axis="y", color="#d7dce1")
        style(axes)
        axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("loss on the search text, nats a token")
    save(figure, HERE / "search-curves.svg")


def save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG whose text depends on nothing but the figure."""
    data = BytesIO()
    with rc_context({"svg.hashsalt": "pruner-zero"}):
        figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
    # Matplotlib ends lines of paths in blanks.
    text = "\n".join(line.rstrip() for line in data.getvalue().decode().splitlines())
    write_atomic(file, text + "\n")


def draw(axes: Axes, algorithm: str, run: str) -> float:
    """Draw a run as steps; return its lowest loss, infinite where it judged no candidate."""
    file = HERE / "results" / f"search-50-any-{algorithm}-{run}.json"
    curve = json.loads(file.read_text())["curve"] if file.exists() else []
    minutes, losses = [point["seconds"] / 60 for point in curve], [point["loss"] for point in curve]
    if curve:
        axes.step(minutes, losses, where="post", color=COLORS[algorithm], label=algorithm)
    return min(losses, default=math.inf)


if __name__ == "__main__":
    main()
