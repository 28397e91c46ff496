"""Each result in one sentence that names the outcome and the setting."""

from html import unescape
from pathlib import Path
from typing import Any

from pruner_zero.report.read import read_result
from pruner_zero.report.summary import summary
from tests.report.conftest import (
    ROWS,
    WITH_SMALLER,
    write_comparison,
    write_prune,
    write_search,
)


def text_of(path: Path) -> str:
    html = unescape(summary(read_result(path)))
    return html.replace("<code>", "`").replace("</code>", "`")


def test_a_search(run: Path) -> None:
    assert text_of(run) == (
        "Of 5 metrics tried for `models/tiny` at 50% zeros, `W * G * X`, compared across the "
        "whole model, prunes best: perplexity 44.70 on the search text."
    )


def test_a_search_under_a_pattern_names_no_group(tmp_path: Path) -> None:
    run = write_search(tmp_path, pattern="2:4", sparsity=None)
    assert "at 2:4 zeros, `W * G * X` prunes best" in text_of(run)


def test_a_search_for_units_names_them_and_the_size(tmp_path: Path) -> None:
    units: dict[str, Any] = {"structure": "channels", "pattern": None}
    share = write_search(tmp_path / "share", sparsity=0.25, **units)
    assert "for `models/tiny` at 25% fewer channels, `W * G * X`" in text_of(share)
    size = write_search(tmp_path / "size", sparsity=None, parameters="100M", **units)
    assert "for `models/tiny` at 100M parameters by channels, `W * G * X`" in text_of(size)


def test_a_search_that_only_knows_the_closed_form(tmp_path: Path) -> None:
    run = write_search(tmp_path, [("W", "row", {"reconstruction": -1.5})])
    assert text_of(run).endswith("prunes best: its closed-form error is -1.5.")


def test_a_search_without_result(tmp_path: Path) -> None:
    sentence = "No metric that works has been found for `models/tiny` at 50% zeros yet."
    assert text_of(write_search(tmp_path / "empty", [])) == sentence
    assert text_of(write_search(tmp_path / "bad", [("W", "row", {})])) == sentence


def test_a_prune(tmp_path: Path) -> None:
    start = "37.50% of the weights in 4 matrices of `models/tiny` are zero, chosen by `W * X`"
    assert text_of(write_prune(tmp_path / "a")) == f"{start} (50% per row)."
    assert text_of(write_prune(tmp_path / "b", steps=["refine", "obs"])) == (
        f"{start} (50% per row), the mask refined by swaps, "
        "the remaining weights corrected by SparseGPT's sweep."
    )
    assert text_of(write_prune(tmp_path / "c", steps=["new"])).endswith(", the step new.")
    trained = write_prune(tmp_path / "d", steps=["obs"], asymmetric=True, distill=40)
    assert text_of(trained).endswith(
        "SparseGPT's sweep towards the dense model's outputs, the kept weights trained for 40 "
        "steps towards the dense model."
    )


def test_models_with_fewer_parameters_do_not_compete_with_masks(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "table.json", WITH_SMALLER)
    assert "Of 3 methods" in text_of(table)
    assert "`mine` has the lowest perplexity" in text_of(table)
    none = {"sparsity": None, "pattern": None}
    alone = write_comparison(tmp_path / "alone.json", [WITH_SMALLER[0], *WITH_SMALLER[4:]], **none)
    assert text_of(alone).startswith(
        "Of 2 methods for `models/tiny`, `ria@channels` has the lowest perplexity on `test.txt`, "
    )


def test_a_comparison(table: Path, tmp_path: Path) -> None:
    assert text_of(table) == (
        "Of 3 methods for `models/tiny` at 50% zeros, `mine` has the lowest perplexity on "
        "`test.txt`, 50.00, before `wanda` with 60.00; the dense model has 20.00."
    )
    assert text_of(write_comparison(tmp_path / "none.json", ROWS[3:])) == (
        "No method could be measured for `models/tiny` at 50% zeros."
    )
