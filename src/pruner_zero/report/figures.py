"""The figures of results, drawn with matplotlib: in the page, in notebooks and for papers.

Each function gives a `matplotlib.figure.Figure`, which `savefig` writes in any format.
"""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from html import unescape
from io import StringIO
from itertools import accumulate

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pruner_zero.errors import excerpt
from pruner_zero.evolution import Study
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.hall_of_fame import HallOfFame, complexity
from pruner_zero.markup import clean, element
from pruner_zero.pruning.matrix import MatrixRecord, total_sparsity

# The colours of the page on white. In the page each is a variable of its style sheet, which has
# other values for dark screens.
_INK, _MUTED, _LINE, _PAPER = "#1b2027", "#57616c", "#d7dce1", "#ffffff"
_ACCENT, _WARM, _CLOUD = "#0b5cad", "#b0480b", "#a9b2bc"
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _LINE: "line",
    _PAPER: "paper",
    _ACCENT: "accent",
    _WARM: "warm",
    _CLOUD: "cloud",
}
# Prefix of the gid of an artist; the page shows the rest of the gid as its tooltip.
_TOOLTIP = "tooltip: "
_POINTS, _PIXELS = 72, 96

LOSSES = {
    "reconstruction": "closed-form error",
    "few": "loss on a few windows, nats a token",
    "all": "loss on the search text, nats a token",
}
# More dots hide each other and make the page large.
MOST_DOTS = 800
_ALL = "all"


def front(study: Study) -> Figure | None:
    """Complexity and loss of the candidates on the highest rung reached, with the Pareto front.

    At most 800 candidates beside the front are drawn, and none whose loss is so high that it would
    compress the axis. None where no candidate was judged.
    """
    hall = study.hall_of_fame
    if not hall.front:
        return None
    figure, axes = new_figure()
    axes.grid(axis="y", color=_LINE)
    cloud = [_place(record) for record in dots(study)]
    if cloud:
        x, y = zip(*cloud, strict=True)
        axes.scatter(x, y, s=7, color=_CLOUD, alpha=0.55, linewidths=0)
    x, y = zip(*map(_place, hall.front), strict=True)
    axes.step(x, y, where="post", color=_ACCENT, linewidth=1.5)
    named = _names(hall)
    for record in hall.members:
        place = _place(record)
        color = _WARM if record.candidate.number in named else _ACCENT
        tooltip = _TOOLTIP + _title(record)
        axes.plot(*place, "o", markersize=5.5, color=color, gid=tooltip)
    axes.set_xlabel("complexity")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(LOSSES[highest_rung(study)])
    axes.margins(0.08, 0.1)
    for record in hall.members:
        if record.candidate.number in named:
            place = _place(record)
            right = place[0] < sum(axes.get_xlim()) / 2
            axes.annotate(
                named[record.candidate.number],
                place,
                (7, 5) if right else (-6, -12),
                textcoords="offset points",
                ha="left" if right else "right",
                color=_INK,
                fontsize=9,
                fontweight="bold",
            )
    return figure


def best_by_time(study: Study) -> Figure | None:
    """The lowest loss so far by wall time; None where no batch is finished or no metric works."""
    finished: list[float] = []
    for candidates, seconds in study.batches:
        finished += [seconds / 60] * (candidates - len(finished))
    return _best_so_far(study, finished, study.elapsed / 60, "wall time, minutes")


def best_by_evaluations(study: Study) -> Figure | None:
    """The lowest loss so far by the number of distinct candidates; None where no metric works."""
    distinct = list(accumulate(int(record.evaluation.counts) for record in study.records))
    return _best_so_far(study, distinct, max(distinct, default=0), "distinct candidates")


def sparsity(records: Sequence[MatrixRecord]) -> Figure:
    """The share of pruned weights by kind of matrix (rows) and block (columns), and of all."""
    groups: dict[tuple[str, str], list[MatrixRecord]] = defaultdict(list)
    for record in records:
        for kind in (record.kind, _ALL):
            for block in (str(record.block), _ALL):
                groups[kind, block].append(record)
    kinds = [*dict.fromkeys(record.kind for record in records), _ALL]
    blocks = [*map(str, sorted({record.block for record in records})), _ALL]
    shares = {cell: 100 * total_sparsity(group) for cell, group in groups.items()}
    low, high = min(shares.values()), max(shares.values())
    width = min(0.6, max(0.13, 8.2 / len(blocks)))
    names = [clean(excerpt(kind, 40)) for kind in kinds]
    left = 0.3 + 0.08 * max(map(len, names))
    figure, axes = new_figure(left + max(2.4, width * len(blocks)), 0.27 * len(kinds) + 0.6)
    for (kind, block), share in shares.items():
        strength = 0.08 + 0.82 * ((share - low) / (high - low) if high > low else 0.5)
        x, y = blocks.index(block), kinds.index(kind)
        tooltip = f"{_TOOLTIP}{kind}, {block}: {share:.1f} %"
        corner = (x - 0.47, y - 0.47)
        axes.add_patch(
            Rectangle(corner, 0.94, 0.94, color=_ACCENT, alpha=strength, lw=0, gid=tooltip)
        )
        if width > 0.2:
            text = f"{share:.1f}" if width > 0.4 else f"{share:.0f}"
            color = _PAPER if strength > 0.6 else _INK
            axes.text(x, y, text, ha="center", va="center", color=color, fontsize=7.5)
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    every = math.ceil(0.25 / width)
    places = [*range(0, len(blocks) - every, every), len(blocks) - 1]
    axes.set_xticks(places, [blocks[place] for place in places])
    # A dollar sign in a name does not begin a formula.
    axes.set_yticks(range(len(kinds)), names, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel(f"block ({low:.1f} to {high:.1f} % pruned)")
    return figure


def new_figure(width: float = 4.8, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure of `width` and `height` inches in the style of the page, with its axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """Give axes the style of the page: few lines, muted labels."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=9, left=False)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_MUTED, fontsize=9)


def to_svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element for a page.

    label: a text alternative for the figure. The same figure gives the same text; colours are
    variables of the page's style sheet, and words stay text.
    """
    for artist in figure.findobj():
        # Clipping would cut marks at the edge.
        artist.set_clip_on(False)
    file = StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Names of marks are hashes with the label, so that they differ between the figures of a page.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), warnings.catch_warnings():
        # The fonts of a browser may have letters that the font for measuring lacks.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="svg", metadata=no_metadata)
    svg = re.sub(r"<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    marks = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    marks = re.sub(r">\s+<", "><", marks).replace("xlink:href", "href")
    marks = re.sub(r'<g id="([^"]*)">', _group, marks)
    for color, name in _VARIABLES.items():
        marks = marks.replace(color, f"var(--{name})")
    width, height = (_POINTS * inches for inches in figure.get_size_inches())
    return drawing(label, width, height, Markup(marks), scale=_PIXELS / _POINTS)


def drawing(label: str, width: float, height: float, *marks: Markup, scale: float = 1.0) -> Markup:
    """An <svg> element of this size around `marks`, shown at `scale`; label: what it shows."""
    return element(
        "svg",
        *marks,
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width * scale:.0f}",
        xmlns="http://www.w3.org/2000/svg",
    )


def dots(study: Study) -> list[Record]:
    """The candidates that `front` draws beside the Pareto front, evenly chosen where many."""
    hall = study.hall_of_fame
    losses = sorted(record.evaluation.value for record in study.judged)
    limit = max(hall.front[0].evaluation.value, losses[3 * len(losses) // 4])
    members = {record.candidate.number for record in hall.members}
    beside = [
        record
        for record in study.judged
        if record.candidate.number not in members and record.evaluation.value <= limit
    ]
    return beside[:: math.ceil(len(beside) / MOST_DOTS) or 1]


def highest_rung(study: Study) -> str:
    """The highest rung that a distinct candidate reached; the first where none did."""
    return RUNGS[max((record.evaluation.rung for record in study.judged), default=1) - 1]


def _best_so_far(study: Study, places: Sequence[float], end: float, name: str) -> Figure | None:
    """The lowest value so far over `places`, positions of candidates on the axis `name`."""
    judged = {record.candidate.number for record in study.judged}
    lowest: dict[float, float] = {}
    best = math.inf
    # Candidates of an unfinished batch have no place in time.
    for record, place in zip(study.records, places, strict=False):
        if record.candidate.number in judged and record.evaluation.value < best:
            best = lowest[place] = record.evaluation.value
    if not lowest:
        return None
    figure, axes = new_figure()
    axes.grid(axis="y", color=_LINE)
    axes.step([*lowest, end], [*lowest.values(), best], where="post", color=_ACCENT, linewidth=1.5)
    axes.plot(list(lowest), list(lowest.values()), "o", color=_ACCENT, markersize=4)
    axes.set_xlim(0, 1.02 * end or None)
    axes.margins(y=0.1)
    axes.set_xlabel(name)
    axes.set_ylabel(LOSSES[highest_rung(study)])
    return figure


def _place(record: Record) -> tuple[int, float]:
    return complexity(record.candidate.expression), record.evaluation.value


def _names(hall: HallOfFame) -> dict[int, str]:
    """The words at the marks of the best metric and the knee, by the candidate's number."""
    names: dict[int, str] = {}
    for name, record in (("best", hall.best), ("knee", hall.knee)):
        if record is not None:
            number = record.candidate.number
            names[number] = f"{names[number]}, {name}" if number in names else name
    return names


def _title(record: Record) -> str:
    x, y = _place(record)
    candidate = record.candidate
    text = excerpt(candidate.expression, 200)
    return f"{text} @{candidate.scope}: complexity {x}, loss {y:.4f}"


def _group(start: re.Match[str]) -> str:
    """The start tag of a group of marks, with a tooltip where its name has one."""
    name = unescape(start[1])
    tooltip = element("title", name.removeprefix(_TOOLTIP)) if name.startswith(_TOOLTIP) else ""
    return f"<g>{tooltip}"
