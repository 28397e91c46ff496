"""Small results on disk, as search, prune and compare leave them, made without a model."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.choices import Scope
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.record import JOURNAL, Archive, Record
from pruner_zero.files import with_checksum
from pruner_zero.metric.grammar import parse
from pruner_zero.pruning.matrix import MatrixRecord

Judged = tuple[str, Scope, Mapping[str, float]]
Row = dict[str, Any]

SETTINGS: dict[str, Any] = {
    "model": "models/tiny",
    "calibration": "words.txt",
    "search_text": "other.txt",
    "sparsity": 0.5,
    "pattern": None,
    "seed": 0,
    "evaluations": 4,
}
SEARCH = {**SETTINGS, "update": "none"}
PROVENANCE = {"pruner_zero": "0.1", "git": "abcdef", "torch": "2.13"}
# Complexity 1, 4, 6 and 10; the second has the knee, the third is beaten by it.
JUDGED: tuple[Judged, ...] = (
    ("W", "row", {"reconstruction": 0.0, "few": 6.0, "all": 6.0}),
    ("W * X", "row", {"reconstruction": -1.0, "few": 4.1, "all": 4.0}),
    ("W * G", "global", {"reconstruction": -0.5, "few": 4.6, "all": 4.5}),
    ("W * G * X", "global", {"reconstruction": -2.0, "few": 3.9, "all": 3.8}),
    ("W + X", "matrix", {"reconstruction": -0.1}),
)


def windows(text: str) -> dict[str, Any]:
    """The description of windows in a result."""
    return {
        "text": text,
        "text_sha256": "ab" * 32,
        "joined": "one stream as it stands",
        "selection": "random",
        "windows": 4,
        "seqlen": 16,
    }


def write_search(
    folder: Path,
    judged: Sequence[Judged] = JUDGED,
    batch: int = 2,
    ended: bool = True,
    **settings: Any,
) -> Path:
    """A run folder whose candidates are `judged`, `batch` of them every ten seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {**SEARCH, **settings}
    Archive(folder, merged)
    lines: list[dict[str, Any]] = []
    for number, (text, scope, results) in enumerate(judged):
        value = list(results.values())[-1] if results else float("inf")
        evaluation = Evaluation(len(results), value, results, None if results else "constant")
        candidate = Candidate(number, parse(text), scope)
        lines.append(Record(candidate, evaluation, text).to_json())
        if (number + 1) % batch == 0 or number + 1 == len(judged):
            elapsed = 10.0 * math.ceil((number + 1) / batch)
            lines.append({"kind": "batch", "elapsed": elapsed, "avoided": {}})
    lines += [{"kind": "end", "finalists": []}] if ended else []
    # At once: an archive that is synced line by line takes long for thousands.
    with open(folder / JOURNAL, "a") as file:
        file.writelines(json.dumps(with_checksum(line)) + "\n" for line in lines)
    run = {
        "settings": merged,
        "calibration": windows(merged["calibration"]),
        "search": windows(merged["search_text"]),
        "provenance": PROVENANCE,
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def write_prune(folder: Path, blocks: int = 2, **changed: Any) -> Path:
    """A result folder of prune, without the model: q half zero, up a quarter."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        MatrixRecord(f"layers.{block}.{kind}", block, (4, 8), zeros)
        for block in range(blocks)
        for kind, zeros in (("attn.q", 16), ("mlp.up", 8))
    ]
    content: dict[str, Any] = {
        "settings": {**SETTINGS, "metric": "wanda", "scope": "row"},
        "expression": "W * X",
        "pattern": "50% per row",
        "scope": "row",
        "recipe": ["mask: W * X (50% per row)", "order: one-shot"],
        "sparsity": 0.375,
        "calibration": windows("words.txt"),
        "provenance": PROVENANCE,
        "matrices": [record.to_json() for record in records],
    }
    del content["settings"]["search_text"], content["settings"]["evaluations"]
    (folder / "pruning.json").write_text(json.dumps({**content, **changed}))
    return folder


def write_recovery(folder: Path, timed: bool = True, **settings: Any) -> Path:
    """The folder of a recovery: of minutes, or of steps, whose curve has no seconds."""
    folder.mkdir(exist_ok=True)
    points = [
        {"step": step, "tokens": 64 * step, "train_loss": None, "validation_loss": 4.0 - step / 8}
        for step in (0, 4)
    ]
    content = {
        "settings": {"model": "models/pruned", "text": "words.txt", "minutes": 1.0, **settings},
        "kept_step": 4,
        "loss_before": 4.0,
        "loss_after": 3.5,
        "curve": [{**p, "seconds": 15.0 * p["step"]} if timed else p for p in points],  # type: ignore[operator]
        "training": windows("words.txt (first nine tenths)"),
        "validation": windows("words.txt (last tenth)"),
        "provenance": PROVENANCE,
    }
    (folder / "recovery.json").write_text(json.dumps(content))
    (folder / "timing.json").write_text('{"seconds": 2.5, "files": {}}')
    return folder


def pruned_row(method: str, expression: str, scope: str, perplexity: float | None) -> Row:
    """The row that compare writes for a method."""
    return {
        "method": method,
        "perplexity": perplexity,
        "sparsity": 0.5,
        "expression": expression,
        "scope": scope,
        "mode": "one-shot",
    }


ROWS: tuple[Row, ...] = (
    {"method": "dense", "perplexity": 20.0, "sparsity": 0.0},
    pruned_row("wanda", "W * X", "row", 60.0),
    pruned_row("mine", "X * W * G", "global", 50.0),
    {**pruned_row("ria", "W", "row", None), "sparsity": None, "error": "no scores"},
)

# The same with two models of fewer parameters, one of them without a metric.
WITH_SMALLER: tuple[Row, ...] = (
    *({**row, "parameters": 10_000} for row in ROWS[:3]),
    ROWS[3],
    {**pruned_row("ria@channels", "W", "", 30.0), "parameters": 8_000},
    {**pruned_row("block-influence@blocks", "", "", 40.0), "expression": None, "parameters": 9_000},
)


def write_comparison(file: Path, rows: Sequence[Row] = ROWS, **settings: Any) -> Path:
    """A table that compare wrote."""
    merged = {**SETTINGS, "methods": "dense,wanda,mine,ria", "text": "test.txt", **settings}
    del merged["search_text"], merged["evaluations"]
    provenance = {
        **PROVENANCE,
        "settings": merged,
        "calibration": windows("words.txt"),
        "evaluation": {**windows("test.txt"), "selection": "consecutive"},
    }
    cost = {"seconds": 1.5, "peak_rss_bytes": 2**30}
    measured = [{**row, **cost} for row in rows]
    file.write_text(json.dumps({"rows": measured, "provenance": provenance}))
    return file


def write_evaluation(file: Path, **changed: Any) -> Path:
    """What evaluate measured of a pruned model; a change to None leaves a value out."""
    row = {"parameters": 8_000, "bytes": 32_000, "prefill": 512.0, "decode": 31.2}
    content: dict[str, Any] = {
        "model": "models/pruned",
        "perplexity": 44.5,
        "loss": 3.8,
        "losses": [3.8],
        "text": windows("test.txt"),
        "speed": [{"model": "models/pruned", **row}, {"model": "models/tiny", **row}],
        "tasks": [{"task": "arc_easy", "acc": 0.5, "prob": 0.25}],
        "settings": {"model": "models/pruned"},
        "provenance": PROVENANCE,
    }
    content |= changed
    known = {name: value for name, value in content.items() if value is not None}
    file.write_text(json.dumps(known))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a search."""
    return write_search(tmp_path / "run")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """The folder of a prune."""
    return write_prune(tmp_path / "pruned")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The file of a comparison."""
    return write_comparison(tmp_path / "table.json")
