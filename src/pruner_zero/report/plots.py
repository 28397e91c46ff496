"""Static plots of a search for papers, drawn with matplotlib (extra `plots`)."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import write_atomic, writing
from pruner_zero.report import curves
from pruner_zero.report.read import SearchRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".pdf", ".svg", ".png")

# What the formats date themselves with: left out, so that equal plots are equal files.
_UNDATED = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
_INK, _LINE, _CLOUD = "black", "#0b5cad", "#9aa4b0"


def write_plots(runs: Sequence[SearchRun], folder: Path) -> list[Path]:
    """Write the front and the best-so-far curve of each run as PDF, SVG and PNG to `folder`.

    Several runs are numbered. A run in which nothing was judged yet is left out. Raises
    PrunerZeroError where matplotlib is missing or `folder` cannot be written.
    """
    written = []
    for number, run in enumerate(runs, 1):
        tail = f"-{number}" if len(runs) > 1 else ""
        for name, draw in (("front", draw_front), ("curve", draw_curve)):
            for suffix in SUFFIXES:
                file = folder / f"{name}{tail}{suffix}"
                if draw(run, file):
                    written.append(file)
    return written


def draw_front(run: SearchRun, file: Path) -> bool:
    """Draw complexity, loss and the Pareto front to `file`, in the format of its suffix.

    False, and no file, where nothing was judged yet. Raises PrunerZeroError for a suffix
    other than .pdf, .svg and .png, and where matplotlib is missing.
    """
    cloud = curves.Cloud.of(run)
    if cloud is None:
        return False
    figure, axes = _figure()
    others = [curves.place(record) for record in cloud.others]
    best = [curves.place(record) for record in cloud.front]
    if others:
        x, y = zip(*others, strict=True)
        axes.scatter(x, y, s=6, color=_CLOUD, linewidths=0)
    x, y = zip(*best, strict=True)
    axes.step(x, y, where="post", color=_LINE, marker="o", markersize=3.5, linewidth=1)
    axes.set_xlabel("complexity")
    axes.set_ylabel(curves.LOSSES[cloud.rung])
    _save(figure, file)
    return True


def draw_curve(run: SearchRun, file: Path) -> bool:
    """Draw the lowest loss so far by evaluations to `file`, as `draw_front` does."""
    cloud, points = curves.Cloud.of(run), curves.best_by_evaluations(run)
    if cloud is None or not points:
        return False
    figure, axes = _figure()
    x, y = zip(*points, strict=True)
    axes.step(x, y, where="post", color=_LINE, linewidth=1)
    axes.set_xlabel("distinct candidates")
    axes.set_ylabel(curves.LOSSES[cloud.rung])
    _save(figure, file)
    return True


def _figure() -> "tuple[Figure, Axes]":
    """Axes of one column of a paper, without pyplot and its global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PrunerZeroError(
            "plots need matplotlib: pip install 'pruner-zero[plots]', or leave out --plots"
        ) from error
    figure = Figure(figsize=(3.4, 2.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7, colors=_INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(8)
    return figure, axes


def _save(figure: "Figure", file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise PrunerZeroError(f"{file} has no known format: end it in {', '.join(SUFFIXES)}")
    from matplotlib import rc_context

    data = BytesIO()
    # Fonts that publishers take, and names inside SVG that do not change.
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "pruner-zero"}):
        figure.savefig(data, format=file.suffix[1:], dpi=300, metadata=_UNDATED[file.suffix])
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, data.getvalue())
