"""Tables of the documentation show the values of the result files, and no value without a file."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.hooks import ROOT, load_hook

measured = load_hook("measured")

RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = list(measured.BUDGETS)
KEPT, GRADIENTS, SEARCHED, UPDATED = COLUMNS


def row(method: str, perplexity: float, losses: int = 0, **fields: Any) -> dict[str, Any]:
    """A row as `compare` writes it, each of `losses` windows with the same loss."""
    loss = math.log(perplexity)
    window_losses = {"losses": [loss] * losses} if losses else {}
    defaults = {"scope": "row", "update": "none", "mode": "one-shot", "expression": "W * X"}
    return {"method": method, "perplexity": perplexity, "loss": loss, "seconds": 1.0} | (
        defaults | window_losses | fields
    )


def write(
    folder: Path,
    name: str,
    *rows: dict[str, Any],
    sparsity: float | None = 0.5,
    pattern: str | None = None,
    windows: int = 12,
    text: str = "test",
    **settings: Any,
) -> None:
    provenance = {
        "settings": {"model": "m", "sparsity": sparsity, "pattern": pattern, **settings},
        "calibration": {"tokens_sha256": "c"},
        "evaluation": {"text_sha256": text, "seqlen": 16, "windows": windows},
    }
    (folder / name).write_text(json.dumps({"rows": rows, "provenance": provenance}))


def cells(folder: Path, zeros: str) -> dict[str, str]:
    """One row of the summary by column."""
    lines = measured.summary(measured.read(folder)).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    summary_row = next(line for line in table if line[0] == zeros)
    return dict(zip(table[0], summary_row, strict=True))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Perplexities on 12 windows at 50 %: wanda 60, magnitude 400, SparseGPT 50."""
    write(
        tmp_path,
        measured.REFERENCE,
        row("dense", 20, scope=None, expression=""),
        row("wanda", 60),
        row("magnitude", 400, expression="W"),
        row("sparsegpt", 50, update="obs", expression="sqr(W) / sqr(D)"),
    )
    return tmp_path


def test_each_budget_has_its_best_method(results: Path) -> None:
    summary_row = cells(results, "50 %")
    assert summary_row["zeros"] == "50 %"
    assert summary_row[KEPT] == "**60.0** `wanda`"
    assert summary_row[UPDATED] == "**50.0** `sparsegpt`"


def test_a_cell_without_a_file_is_marked_as_not_measured(results: Path) -> None:
    assert cells(results, "50 %")[GRADIENTS] == measured.MISSING
    assert set(cells(results, "4:8").values()) == {"4:8", measured.MISSING}


@pytest.mark.parametrize("expression", ["W * X + W * G", "W * (O * X)^0.73"])
def test_a_metric_with_gradients_costs_more_than_one_without(
    expression: str, results: Path
) -> None:
    write(results, "more.json", row("gblm", 55, expression=expression))
    assert cells(results, "50 %")[GRADIENTS] == "**55.0** `gblm`"
    assert cells(results, "50 %")[KEPT] == "**60.0** `wanda`"


@pytest.mark.parametrize(
    ("method", "fields"),
    [("runs/best.json", {}), ("x+refine", {"label": "EVOLVED"}), ("G@global", {"winner": True})],
)
def test_the_winner_of_a_search_is_known_by_its_file_or_its_mark(
    results: Path, method: str, fields: dict[str, Any]
) -> None:
    write(results, "t.json", row(method, 45, expression="G", scope="global", **fields))
    shown = "G@global" if method.endswith(".json") else method
    assert cells(results, "50 %")[SEARCHED] == f"**45.0** `{shown}`"


def test_of_more_windows_the_first_twelve_count(results: Path) -> None:
    long = row("ria", 90, losses=24)
    long["losses"][:12] = [math.log(55)] * 12
    write(results, "long.json", long, windows=24)
    assert cells(results, "50 %")[KEPT] == "**55.0** `ria`"


def test_fewer_windows_other_texts_and_failed_methods_are_left_out(results: Path) -> None:
    write(results, "short.json", row("ria", 30), windows=8)
    write(results, "other.json", row("ria", 10), text="another")
    write(results, "failed.json", {**row("ria", 10), "perplexity": None})
    assert cells(results, "50 %")[KEPT] == "**60.0** `wanda`"


def test_the_mode_is_shown_where_it_is_sequential(results: Path) -> None:
    write(results, "s.json", row("wanda", 40, mode="sequential"))
    assert cells(results, "50 %")[KEPT] == "**40.0** `wanda` in sequence"


def test_gradients_of_pieces_are_left_out(results: Path) -> None:
    fields = {"expression": "W * G"}
    write(results, "whole.json", row("W * G", 58, 12, **fields))
    pieces = (row("W * G", 55, 12, **fields), row("wanda", 60, 12))
    write(results, "pieces.json", *pieces, gradient_seqlen=8)
    assert cells(results, "50 %")[GRADIENTS] == "**58.0** `W * G`"
    assert cells(results, "50 %")[KEPT] == "**60.0** `wanda`"


def test_a_table_is_taken_from_below_its_heading(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n| a |\n|---|\n\n## B 50 %\n\ntext\n\n| b |\n|---|\n| 1 |\nend\n")
    assert measured.table_of(page) == "| a |\n|---|"
    assert measured.table_of(page, "B 50 %") == "| b |\n|---|\n| 1 |"
    with pytest.raises(ValueError, match="no heading 'C'"):
        measured.table_of(page, "C")


def test_the_committed_files_are_read() -> None:
    measurements = measured.read(RESULTS)
    reference = json.loads((RESULTS / measured.REFERENCE).read_text())
    perplexities = {row["method"]: row["perplexity"] for row in reference["rows"]}
    wanda, *_ = (
        m for m in measurements if (m.zeros, m.method, m.mode) == ("50 %", "wanda", "one-shot")
    )
    assert wanda.perplexity == pytest.approx(perplexities["wanda"], rel=1e-3)
    assert {"50 %", "2:4", "dense"} <= {measurement.zeros for measurement in measurements}
    assert any(measurement.searched for measurement in measurements)


def test_every_row_of_readme_is_a_measured_cell() -> None:
    measured_rows = set()
    for file in (RESULTS / "proof").glob("*/*.json"):
        texts = json.loads(file.read_text())["texts"]
        values = (texts[name]["perplexity"] for name in ("wikitext", "pydoc", "news"))
        measured_rows.add(tuple(f"{value:.1f}" for value in values))
    shown = re.findall(
        r"^\|.*\| \**([\d.]+)\** \| \**([\d.]+)\** \| \**([\d.]+)\** \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(shown) == 9
    assert set(shown) <= measured_rows


def test_result_files_name_no_path_of_the_machine() -> None:
    for file in (path for path in RESULTS.iterdir() if path.is_file()):
        assert not re.findall(r'"(?:/|[A-Z]:\\)[^"\s]*/[^"\s]*"', file.read_text()), file
