"""The best so far of searches with the same seed, one panel a seed: ours, the paper's, random.

    python benchmarks/curves.py

Draws benchmarks/search-curves.svg from the summaries that benchmarks/search.py left. Seeds have
windows of their own, so losses compare inside a panel alone. Needs the extra `plots`.
"""

import argparse
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruner_zero.files import write_atomic

HERE = Path(__file__).parent
COLORS = {"default": "#0b5cad", "published": "#b3541e", "random": "#7a8591"}
NAMES = {"default": "default", "published": "published", "random": "random search"}


def main() -> None:
    """Draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--label", default="pieces", help="ends the names of the results")
    given = parser.parse_args()
    figure = Figure(figsize=(2.6 * len(given.seeds), 2.5), layout="constrained")
    panels = figure.subplots(1, len(given.seeds), squeeze=False)[0]
    for seed, axes in zip(given.seeds, panels, strict=True):
        for algorithm in COLORS:
            file = HERE / "results" / f"search-50-any-{algorithm}-{seed}-{given.label}.json"
            if file.exists():
                draw(axes, json.loads(file.read_text()), algorithm)
        axes.set_title(f"seed {seed}", fontsize=8)
        axes.set_xlabel("minutes", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("loss on the search text, nats", fontsize=8)
    panels[-1].legend(fontsize=7, frameon=False)
    data = BytesIO()
    with rc_context({"svg.hashsalt": "pruner-zero"}):
        figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
    # Matplotlib ends lines of paths in blanks.
    text = "\n".join(line.rstrip() for line in data.getvalue().decode().splitlines())
    write_atomic(HERE / "search-curves.svg", text + "\n")


def draw(axes: Axes, found: dict[str, Any], algorithm: str) -> None:
    """One run as steps, up to where it ended."""
    points = [(one["seconds"] / 60, one["loss"]) for one in found["curve"]]
    if not points:
        return
    minutes, losses = zip(*points, strict=True)
    axes.step(minutes, losses, where="post", color=COLORS[algorithm], label=NAMES[algorithm])


if __name__ == "__main__":
    main()
