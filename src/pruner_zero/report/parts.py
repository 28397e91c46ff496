"""The parts of a page, one for each result: its figures, tables and portraits."""

import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruner_zero.analysis.analysis import Agreement, agreements
from pruner_zero.errors import excerpt
from pruner_zero.evolution import Study
from pruner_zero.evolution.archive import Record
from pruner_zero.metric import parse
from pruner_zero.pruning.matrix import MatrixRecord, total_sparsity
from pruner_zero.report import figures
from pruner_zero.report.portrait import group_of, portrait
from pruner_zero.report.read import ComparisonRun, PruneRun, Result

_LONGEST = 300


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `left` columns are flush left, the others numbers.

    marked: the index of a row that stands out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    marked: int | None = None


def part(result: Result) -> dict[str, Any]:
    """The values for the template `kind`, by name; few where a search has only begun."""
    match result:
        case Study():
            return _search(result)
        case PruneRun():
            return _prune(result)
    return _comparison(result)


def _search(study: Study) -> dict[str, Any]:
    hall = study.hall_of_fame
    distinct = [record for record in study.records if record.evaluation.counts]
    facts = f"{len(study.records):,} candidates, {len(distinct):,} with distinct masks"
    if study.batches:
        facts += f", in {study.elapsed / 60:.1f} minutes"
    front = figures.front(study)
    curves = (
        (figures.best_by_time(study), "Lowest loss so far by wall time"),
        (figures.best_by_evaluations(study), "Lowest loss so far by distinct candidates"),
    )
    label = f"Pareto front of complexity and loss: {len(hall.front)} of {len(study.judged)} metrics"
    rows = agreements(distinct)
    return {
        "kind": "search",
        "run": study,
        "facts": facts,
        "ended": study.ended,
        "resume": shlex.join(["pruner-zero", "search", "--resume", str(study.path)]),
        "winner": _portrait(hall.best, study),
        "knee": _portrait(hall.knee, study) if hall.knee is not hall.best else None,
        "front": figures.to_svg(front, label) if front else None,
        "note": _note(study) if front else "",
        "hall": _hall(study),
        "final": _final(study),
        "curves": [figures.to_svg(curve, name) for curve, name in curves if curve],
        "agreement": Table(Agreement.header, tuple(row.cells for row in rows), 3),
    }


def _prune(run: PruneRun) -> dict[str, Any]:
    kinds: dict[str, list[MatrixRecord]] = defaultdict(list)
    for record in run.matrices:
        kinds[record.kind].append(record)
    rows = tuple(
        (kind, str(len(records)), f"{_weights(records):,}", f"{total_sparsity(records):.2%}")
        for kind, records in kinds.items()
    )
    label = "Share of pruned weights by kind of matrix and block"
    group = "unit" if run.settings.get("structure") else run.settings.get("scope")
    return {
        "kind": "prune",
        "run": run,
        "metric": portrait(parse(run.expression), group),
        "kinds": Table(("matrices", "count", "weights", "pruned"), rows),
        "heat_map": figures.to_svg(figures.sparsity(run.matrices), label) if run.matrices else None,
        "remarks": [f"{record.name}: {record.note}" for record in run.matrices if record.note],
    }


def _comparison(run: ComparisonRun) -> dict[str, Any]:
    best = run.ranked[0] if run.ranked else None
    metric = best["expression"] if best else None
    header: tuple[str, ...] = ("method", "group", "mode", "perplexity", "sparsity")
    header += ("seconds", "peak memory")
    cells = [_row(row) for row in run.rows]
    if len({row["parameters"] for row in run.rows if row.get("parameters")}) > 1:
        header += ("parameters",)
        sizes = [row.get("parameters") for row in run.rows]
        cells = [
            (*row, f"{size:,}" if size else "") for row, size in zip(cells, sizes, strict=True)
        ]
    text = run.windows.get("evaluation", {})
    caption = "Perplexity per token"
    if text:
        caption += (
            f" on {text['windows']} windows of {text['seqlen']} tokens of {text['text']} "
            f"({text['selection']}, {text['joined']})"
        )
    remarks = [
        f"{row['method']}: {remark}"
        for row in run.rows
        for remark in (*([row["error"]] if "error" in row else []), *row.get("notes", []))
    ]
    marked = run.rows.index(best) if best else None
    scope = group_of(best.get("scope"), best.get("pattern", "")) if best else None
    return {
        "kind": "comparison",
        "run": run,
        "table": Table(header, tuple(cells), 3, marked),
        "caption": f"{caption}. Seconds and memory are those of pruning alone.",
        "best": portrait(parse(metric), scope) if metric else None,
        "remarks": remarks,
    }


def _portrait(record: Record | None, study: Study) -> dict[str, Any] | None:
    if record is None:
        return None
    scope = None if study.settings.get("pattern") else record.candidate.scope
    return portrait(record.candidate.expression, scope)


def _hall(study: Study) -> Table:
    rows = []
    for row, record in zip(study.to_rows(), study.hall_of_fame.members, strict=True):
        named = [name for name in ("knee", "best") if row[name]]
        rows.append(
            (
                excerpt(row["expression"], _LONGEST),
                row["scope"],
                ", ".join(named),
                str(row["complexity"]),
                f"{row['loss']:.4f}",
                f"{row['perplexity']:,.2f}" if record.evaluation.rung > 1 else "",
            )
        )
    # The closed form on the first rung is no loss of the model.
    value = "loss" if figures.highest_rung(study) != "reconstruction" else "closed-form error"
    header = ("metric", "group", "", "complexity", value, "perplexity")
    best = [place for place, row in enumerate(study.to_rows()) if row["best"]]
    return Table(header, tuple(rows), 3, best[0] if best else None)


def _final(study: Study) -> Table | None:
    rows = study.final_race.to_rows()
    if not rows:
        return None
    cells = tuple(
        (
            excerpt(row["expression"], _LONGEST),
            row["scope"],
            f"{row['perplexity']:,.2f}",
            "{:,.2f} to {:,.2f}".format(*row["interval"]),
            "" if row["winner"] else f"{row['behind']:+.4f} ± {row['behind_error']:.4f}",
        )
        for row in rows
    )
    header = ("metric", "group", "perplexity", "95 % interval", "behind the winner, nats")
    winner = next(place for place, row in enumerate(rows) if row["winner"])
    return Table(header, cells, 2, winner)


def _note(study: Study) -> str:
    rung = figures.highest_rung(study)
    note = (
        f"Candidates on '{rung}', the highest rung reached: {len(study.judged):,}. "
        "Complexity counts the nodes of the expression and what its statistics cost to collect."
    )
    hidden = len(study.judged) - len(study.hall_of_fame.members) - len(figures.dots(study))
    return note + (f" {hidden:,} others are not drawn, the worst among them." if hidden else "")


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    measured = "failed" if "error" in row else "overflow"
    if row["perplexity"] is not None:
        measured = f"{row['perplexity']:,.2f}"
    seconds, peak = row.get("seconds"), row.get("peak_rss_bytes")
    return (
        excerpt(row["method"], _LONGEST),
        row.get("scope") or "",
        row.get("mode") or "",
        measured,
        "" if row["sparsity"] is None else f"{row['sparsity']:.2%}",
        "" if seconds is None else f"{seconds:.1f}",
        "" if peak is None else f"{peak / 2**30:.2f} GiB",
    )


def _weights(records: list[MatrixRecord]) -> int:
    return sum(record.shape[0] * record.shape[1] for record in records)
