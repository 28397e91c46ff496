"""The figures of results, drawn with matplotlib: in the page, in notebooks and for papers."""

import math
import warnings
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pruner_zero.errors import excerpt
from pruner_zero.evolution.hall_of_fame import complexity
from pruner_zero.evolution.record import Record
from pruner_zero.evolution.study import Study
from pruner_zero.pruning.matrix import MatrixRecord, total_sparsity
from pruner_zero.report.results import ComparisonRun, RecoveryRun
from pruner_zero.table import clean

# The colours of the page on white; its style sheet inverts figures on dark screens.
_INK, _MUTED, _LINE, _PAPER = "#1b2027", "#57616c", "#d7dce1", "#ffffff"
_ACCENT, _WARM, _CLOUD = "#0b5cad", "#b0480b", "#a9b2bc"
_SHADES = LinearSegmentedColormap.from_list("shades", ["#e6eef7", _ACCENT])

LOSSES = {
    "reconstruction": "closed-form error",
    "few": "loss on a few windows, nats a token",
    "all": "loss on the search text, nats a token",
}
_ALL = "all"
# Inches: the width of the page.
_WIDTH = 9.6
# Percent: shares that differ less have nearly the same shade.
_LEAST_RANGE = 5.0


def front(study: Study) -> Figure | None:
    """Complexity and loss of the candidates on the highest rung reached, with the Pareto front.

    Candidates with a loss so high that it would compress the axis are counted, not drawn. None
    where no candidate was judged.
    """
    hall = study.hall_of_fame
    if not hall.front:
        return None
    figure, axes = new_figure()
    axes.grid(axis="y", color=_LINE)
    places, limit = [_place(record) for record in study.judged], _highest_drawn(study)
    drawn = [place for place in places if place[1] <= limit]
    # A bitmap, since each of thousands of dots would be an element of the page.
    x, y = zip(*drawn, strict=True)
    axes.scatter(x, y, s=7, color=_CLOUD, lw=0, alpha=0.55, rasterized=True)
    axes.step(*zip(*map(_place, hall.front), strict=True), where="post", color=_ACCENT)
    axes.plot(*zip(*map(_place, hall.members), strict=True), "o", color=_ACCENT, markersize=5.5)
    axes.set_xlabel("complexity")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel(LOSSES[highest_rung(study)])
    axes.margins(0.08, 0.1)
    if hidden := len(places) - len(drawn):
        axes.set_title(f"{hidden:,} candidates above", loc="right", color=_MUTED, fontsize=8)
    named = {"best": hall.best, "knee": hall.knee}
    if hall.best is hall.knee:
        named = {"best, knee": hall.best}
    for name, record in named.items():
        if record is not None:
            place = _place(record)
            axes.plot(*place, "o", color=_WARM, markersize=5.5)
            right = place[0] < sum(axes.get_xlim()) / 2
            offset, side = ((7, 5), "left") if right else ((-6, -12), "right")
            axes.annotate(
                *(name, place, offset),
                textcoords="offset points",
                ha=side,
                color=_INK,
                fontsize=9,
                fontweight="bold",
            )
    return figure


def best_so_far(study: Study) -> Figure | None:
    """The lowest loss so far by the number of distinct candidates; None where no metric works.

    It begins with the first loss that is not so high that it would compress the axis.
    """
    if not study.judged:
        return None
    judged = {record.candidate.number for record in study.judged}
    distinct = list(accumulate(int(record.evaluation.counts) for record in study.records))
    lowest: dict[int, float] = {}
    best, limit = math.inf, _highest_drawn(study)
    for record, place in zip(study.records, distinct, strict=True):
        value = record.evaluation.value
        if record.candidate.number in judged and value < best and value <= limit:
            best = lowest[place] = value
    figure, axes = new_figure()
    axes.grid(axis="y", color=_LINE)
    end = distinct[-1]
    axes.step([*lowest, end], [*lowest.values(), best], where="post", color=_ACCENT)
    axes.plot(list(lowest), list(lowest.values()), "o", color=_ACCENT, markersize=4)
    axes.set_xlim(0, 1.02 * end)
    axes.margins(y=0.1)
    axes.set_xlabel("distinct candidates")
    axes.set_ylabel(LOSSES[highest_rung(study)])
    return figure


def sparsity(records: Sequence[MatrixRecord]) -> Figure:
    """The share of pruned weights by kind of matrix (rows) and block (columns), and of all."""
    kinds = [*dict.fromkeys(record.local_name for record in records), _ALL]
    blocks = [*map(str, sorted({record.block for record in records})), _ALL]
    cells: dict[tuple[str, str], list[MatrixRecord]] = {}
    for record in records:
        for kind in (record.local_name, _ALL):
            for block in (str(record.block), _ALL):
                cells.setdefault((kind, block), []).append(record)
    shares = np.full((len(kinds), len(blocks)), np.nan)
    for (kind, block), group in cells.items():
        shares[kinds.index(kind), blocks.index(block)] = 100 * total_sparsity(group)
    names = [clean(excerpt(kind, 40)) for kind in kinds]
    left = 0.3 + 0.08 * max(map(len, names))
    width = min(0.6, (_WIDTH - left) / len(blocks))
    figure, axes = new_figure(left + max(2.4, width * len(blocks)), 0.27 * len(kinds) + 0.6)
    low, high = float(np.nanmin(shares)), float(np.nanmax(shares))
    middle, half = (low + high) / 2, max((high - low) / 2, _LEAST_RANGE / 2)
    mesh = axes.pcolormesh(shares, cmap=_SHADES, edgecolors=_PAPER, lw=1)
    mesh.set_clim(middle - half, middle + half)
    for (y, x), share in np.ndenumerate(shares):
        if width > 0.2 and not math.isnan(share):
            text = f"{share:.1f}" if width > 0.4 else f"{share:.0f}"
            color = _PAPER if share > middle + 0.2 * half else _INK
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=color, fontsize=7.5)
    every = math.ceil(0.25 / width)
    ticks = [*range(0, len(blocks) - every, every), len(blocks) - 1]
    axes.set_xticks([tick + 0.5 for tick in ticks], [blocks[tick] for tick in ticks])
    # A dollar sign in a name does not begin a formula.
    axes.set_yticks(np.arange(len(kinds)) + 0.5, names, parse_math=False)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel(f"block ({low:.1f} to {high:.1f} % pruned)")
    return figure


def learning_curve(run: RecoveryRun) -> Figure:
    """The loss on held-out text by minutes, by steps where the budget was in steps."""
    timed = "seconds" in run.curve[0]
    places = [point["seconds"] / 60 if timed else point["step"] for point in run.curve]
    figure, axes = new_figure()
    axes.grid(axis="y", color=_LINE)
    axes.plot(places, [point["validation_loss"] for point in run.curve], "o-", color=_ACCENT)
    axes.set_xlabel("minutes" if timed else "steps")
    axes.set_ylabel("loss on held-out text, nats a token")
    return figure


def perplexities(run: ComparisonRun) -> Figure | None:
    """The perplexities of a comparison as bars, on a logarithmic axis where they are far apart.

    A line is at the perplexity of the dense model; models with fewer parameters have another
    colour. None where no method has a perplexity.
    """
    groups = [[row for row in group if row.perplexity is not None] for group in run.groups]
    bars = [*groups[0], *groups[1]]
    if not bars:
        return None
    values = [row.perplexity or math.nan for row in bars]
    figure, axes = new_figure(_WIDTH, 0.32 * len(bars) + 0.7)
    colors = [_ACCENT] * len(groups[0]) + [_WARM] * len(groups[1])
    drawn = axes.barh(range(len(bars)), values, height=0.7, color=colors)
    axes.bar_label(drawn, [f"{value:,.2f}" for value in values], padding=4, color=_INK, fontsize=9)
    names = [clean(excerpt(row.method, 48)) for row in bars]
    axes.set_yticks(range(len(bars)), names, parse_math=False)
    axes.invert_yaxis()
    label = "perplexity"
    if run.dense and run.dense.perplexity:
        axes.axvline(run.dense.perplexity, color=_MUTED, linestyle="--", linewidth=1)
        values.append(run.dense.perplexity)
        label += "; dashed: the dense model"
    if max(values) > 20 * min(values):
        axes.set_xscale("log")
        axes.set_xlim(left=0.8 * min(values))
    axes.margins(x=0.12)
    axes.set_xlabel(label + "; orange: models with fewer parameters" * bool(groups[1]))
    return figure


def new_figure(width: float = 4.8, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure of `width` and `height` inches in the style of the page, with its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=9, left=False)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_MUTED, fontsize=9)
    return figure, axes


def to_img(figure: Figure, label: str) -> Markup:
    """The figure as an <img> element that holds its SVG; the same figure gives the same text.

    label: a text alternative for the figure.
    """
    file = BytesIO()
    # Words stay text, for which the browser has the letters that the font for measuring may lack.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="svg", dpi=150, metadata={"Date": None})
    data = b64encode(file.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(clean(label), data)


def highest_rung(study: Study) -> str:
    """The highest rung that a distinct candidate reached; the closed form where none did."""
    results = study.judged[0].evaluation.results if study.judged else {}
    return next((rung for rung in reversed(LOSSES) if rung in results), "reconstruction")


def _highest_drawn(study: Study) -> float:
    """The loss of the simplest metric of the front, or the upper quartile where that is higher."""
    losses = sorted(record.evaluation.value for record in study.judged)
    return max(study.hall_of_fame.front[0].evaluation.value, losses[3 * len(losses) // 4])


def _place(record: Record) -> tuple[int, float]:
    return complexity(record.candidate.expression), record.evaluation.value
