"""The figures of a page, drawn from results."""

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from pruner_zero.errors import excerpt
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.hall_of_fame import HallOfFame
from pruner_zero.pruning import MatrixRecord, total_sparsity
from pruner_zero.report import curves
from pruner_zero.report.heat_map import heat_map
from pruner_zero.report.read import SearchRun
from pruner_zero.report.svg import Axis, Plot, Point

ALL = "all"


def front(cloud: curves.Cloud) -> Markup:
    """Complexity and loss of all that was judged, the Pareto front as a line through it."""
    ends = [record for _, record in _ends(cloud)]
    best = [curves.place(record) for record in cloud.front]
    others = [curves.place(record) for record in cloud.others]
    everyone = best + others
    plot = Plot(
        Axis.over("complexity", [point[0] for point in everyone]),
        Axis.over(curves.LOSSES[cloud.rung], [point[1] for point in everyone], 0.1),
    )
    marks = [
        plot.dot(point, "other", _title(record))
        for point, record in zip(others, cloud.others, strict=True)
    ]
    marks.append(plot.steps(best, "front"))
    for point, record in zip(best, cloud.front, strict=True):
        kind = "best" if any(record is one for one in ends) else "on-front"
        marks.append(plot.dot(point, kind, _title(record), 4.5))
    marks += [plot.note(curves.place(record), word) for word, record in _ends(cloud)]
    label = f"Pareto front of complexity and loss: {len(best)} metrics among {cloud.total}"
    return plot.draw(label, *marks)


def best_so_far(run: SearchRun, rung: str) -> tuple[Markup, ...]:
    """The lowest loss so far by wall time and by evaluations; by time where the run tells it."""
    by_time, by_evaluations = curves.best_by_time(run), curves.best_by_evaluations(run)
    drawn = []
    if by_time:
        size, unit = curves.time_unit(by_time[-1][0])
        scaled = [(seconds / size, loss) for seconds, loss in by_time]
        drawn.append(_curve(scaled, f"wall time, {unit}", rung))
    drawn.append(_curve(by_evaluations, "distinct candidates", rung))
    return tuple(drawn)


def sparsity(records: Sequence[MatrixRecord]) -> Markup:
    """The share of zeros by kind of matrix and block, and over all of each."""
    groups: dict[tuple[str, str], list[MatrixRecord]] = defaultdict(list)
    for record in records:
        for kind in (record.kind, ALL):
            for block in (str(record.block), ALL):
                groups[kind, block].append(record)
    kinds = [*dict.fromkeys(record.kind for record in records), ALL]
    blocks = [*map(str, sorted({record.block for record in records})), ALL]

    def value(row: int, column: int) -> float | None:
        own = groups.get((kinds[row], blocks[column]))
        return total_sparsity(own) if own else None

    label = f"Share of zeros by kind of matrix in {len(blocks) - 1} blocks"
    return heat_map(label, kinds, blocks, value, lambda share: f"{100 * share:.1f} %")


def _curve(points: Sequence[Point], name: str, rung: str) -> Markup:
    plot = Plot(
        Axis.over(name, [0, points[-1][0]], 0.02),
        Axis.over(curves.LOSSES[rung], [point[1] for point in points], 0.1),
    )
    marks = [
        plot.dot(point, "on-front", f"{point[1]:.4f} at {point[0]:.4g}") for point in points[:-1]
    ]
    label = f"Lowest loss so far by {name}: from {points[0][1]:.4g} to {points[-1][1]:.4g}"
    return plot.draw(label, plot.steps(points, "front"), *marks)


def _ends(cloud: curves.Cloud) -> list[tuple[str, Record]]:
    hall = HallOfFame(cloud.front)
    if hall.best is None or hall.knee is None or hall.best is hall.knee:
        return [("best, knee", record) for record in (hall.best,) if record]
    return [("best", hall.best), ("knee", hall.knee)]


def _title(record: Record) -> str:
    x, y = curves.place(record)
    candidate = record.candidate
    text = excerpt(candidate.expression, 200)
    return f"{text} @{candidate.scope}: complexity {x:g}, loss {y:.4f}"
