"""The parts of a page, one for each result, ready to be written down."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pruner_zero.analysis.correlations import Agreement, agreements
from pruner_zero.analysis.statistics import Estimate
from pruner_zero.errors import excerpt
from pruner_zero.evolution.archive import Record
from pruner_zero.evolution.hall_of_fame import HallOfFame, complexity
from pruner_zero.metric import parse
from pruner_zero.pruning import MatrixRecord, total_sparsity
from pruner_zero.report import curves, figures
from pruner_zero.report.portrait import Portrait, portrait
from pruner_zero.report.read import ComparisonRun, PruneRun, SearchRun

_LONGEST = 300


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `left` columns are flush left, the others numbers.

    marked: the index of a row to stand out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    marked: int | None = None


@dataclass(frozen=True)
class SearchPart:
    """A search: what was found, and how."""

    run: SearchRun
    facts: str
    winner: Portrait | None
    knee: Portrait | None
    front: Markup | None
    hall: Table
    note: str
    curves: tuple[Markup, ...]
    agreement: Table


@dataclass(frozen=True)
class PrunePart:
    """A pruned model: its metric and where the zeros are."""

    run: PruneRun
    metric: Portrait
    kinds: Table
    heat_map: Markup | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonPart:
    """A table of methods, the best of them with its portrait."""

    run: ComparisonRun
    table: Table
    caption: str
    best: Portrait | None
    remarks: tuple[str, ...]


Part = SearchPart | PrunePart | ComparisonPart


def search_part(run: SearchRun) -> SearchPart:
    """What a search has to show; little where it has only begun."""
    hall = HallOfFame.of(curves.judged_alike(run))
    cloud = curves.Cloud.of(run)
    distinct = [record for record in run.records if record.evaluation.counts]
    seconds = run.batches[-1][1] if run.batches else 0.0
    facts = f"{len(run.records):,} candidates, {len(distinct):,} with a mask of their own"
    if run.batches:
        size, unit = curves.time_unit(seconds)
        facts += f", in {seconds / size:.3g} {unit}"
    return SearchPart(
        run,
        facts,
        _portrait(hall.best, run),
        _portrait(hall.knee, run) if hall.knee is not hall.best else None,
        figures.front(cloud) if cloud else None,
        _hall(hall),
        _note(cloud) if cloud else "",
        figures.best_so_far(run, cloud.rung) if cloud else (),
        _agreement(agreements(distinct, np.random.default_rng(0))),
    )


def prune_part(run: PruneRun) -> PrunePart:
    """What a pruned model has to show."""
    kinds: dict[str, list[MatrixRecord]] = defaultdict(list)
    for record in run.matrices:
        kinds[record.kind].append(record)
    rows = tuple(
        (kind, str(len(own)), f"{_weights(own):,}", f"{total_sparsity(own):.2%}")
        for kind, own in kinds.items()
    )
    remarks = tuple(f"{one.name}: {one.note}" for one in run.matrices if one.note)
    return PrunePart(
        run,
        portrait(parse(run.expression), run.settings.get("scope")),
        Table(("matrices", "count", "weights", "zeros"), rows),
        figures.sparsity(run.matrices) if run.matrices else None,
        remarks,
    )


def comparison_part(run: ComparisonRun) -> ComparisonPart:
    """What a comparison has to show."""
    best = best_row(run)
    rows = tuple(_row(row) for row in run.rows)
    header = ("method", "group", "mode", "perplexity", "zeros", "seconds", "peak memory")
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
    return ComparisonPart(
        run,
        Table(header, rows, 3, run.rows.index(best) if best else None),
        f"{caption}. Seconds and memory are those of pruning alone.",
        portrait(parse(best["expression"]), best.get("scope")) if best else None,
        tuple(remarks),
    )


def best_row(run: ComparisonRun) -> Mapping[str, Any] | None:
    """The method of the lowest perplexity among those that prune."""
    measured = [row for row in run.rows if row["perplexity"] is not None and "expression" in row]
    return min(measured, key=lambda row: float(row["perplexity"]), default=None)


def _portrait(record: Record | None, run: SearchRun) -> Portrait | None:
    if record is None:
        return None
    scope = None if run.settings.get("pattern") else record.candidate.scope
    return portrait(record.candidate.expression, scope)


def _hall(hall: HallOfFame) -> Table:
    rows = []
    for record in hall.front:
        loss, scope = record.evaluation.rung > 1, record.candidate.scope
        name = [word for word in ("knee", "best") if getattr(hall, word) is record]
        rows.append(
            (
                excerpt(record.candidate.expression, _LONGEST),
                scope,
                ", ".join(name),
                str(complexity(record.candidate.expression)),
                f"{record.evaluation.value:.4f}",
                f"{record.evaluation.perplexity:,.2f}" if loss else "",
            )
        )
    header = ("metric", "group", "", "complexity", "loss", "perplexity")
    return Table(header, tuple(rows), 3, len(rows) - 1 if rows else None)


def _note(cloud: curves.Cloud) -> str:
    note = (
        f"{cloud.total:,} candidates reached this judgement. Complexity counts the nodes of "
        "the expression and what its statistics cost to collect."
    )
    if cloud.above:
        note += f" {cloud.above:,} worse ones lie above the figure."
    hidden = cloud.total - cloud.above - len(cloud.front) - len(cloud.others)
    return note + (f" {hidden:,} of the others are not drawn." if hidden else "")


def _agreement(found: Sequence[Agreement]) -> Table:
    rows = tuple(
        (one.cheap, one.dear, one.among, str(one.n), *_cells(one.kendall), *_cells(one.spearman))
        for one in found
    )
    header = ("cheap", "dear", "among", "n", "Kendall", "95 %", "Spearman", "95 %")
    return Table(header, rows, 3)


def _cells(estimate: Estimate) -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "", ""
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}", ""
    return f"{estimate.value:.2f}", f"{estimate.low:.2f} … {estimate.high:.2f}"


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


def _weights(records: Sequence[MatrixRecord]) -> int:
    return sum(record.shape[0] * record.shape[1] for record in records)
