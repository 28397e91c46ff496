"""Each result in one sentence that names the outcome and the setting."""

from pathlib import Path
from typing import Any

import pytest

from pruner_zero.report import figures
from pruner_zero.report.page import page
from pruner_zero.report.results import read_result
from tests.report.conftest import (
    ROWS,
    WITH_SMALLER,
    windows,
    write_comparison,
    write_evaluation,
    write_prune,
    write_search,
)
from tests.report.html import Page


@pytest.fixture(autouse=True)
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences need none, and they take most of the time of a page."""
    monkeypatch.setattr(figures, "to_img", lambda *_: "")


def text_of(path: Path) -> str:
    (lead,) = Page(page([read_result(path)], "")).leads
    return lead


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
    assert text_of(write_prune(tmp_path)) == f"{start} (50% per row)."


def test_a_prune_that_removes_units(tmp_path: Path) -> None:
    settings = {"model": "models/tiny", "structure": "blocks"}
    words: dict[str, Any] = {
        "expression": None,
        "pattern": "a quarter of the blocks",
        "settings": settings,
    }
    assert text_of(write_prune(tmp_path, parameters=[10_000, 8_000], **words)) == (
        "37.50% of the weights in 4 matrices of `models/tiny` are removed, 8,000 of 10,000 "
        "parameters are left."
    )
    tokens = write_prune(
        tmp_path / "tokens", **{**words, "pattern": "9% of the tokens"}, matrices=[]
    )
    assert text_of(tokens) == "9% of the tokens of `models/tiny` are removed."


def test_a_comparison(table: Path, tmp_path: Path) -> None:
    assert text_of(table) == (
        "Of 3 methods for `models/tiny` at 50% zeros, `mine` has the lowest perplexity, 50.00 on "
        "`test.txt`, before `wanda` with 60.00; the dense model has 20.00."
    )
    assert text_of(write_comparison(tmp_path / "none.json", ROWS[3:])) == (
        "No method could be measured for `models/tiny` at 50% zeros."
    )


def test_models_with_fewer_parameters_do_not_compete_with_masks(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "table.json", WITH_SMALLER)
    masks, smaller = text_of(table).split("20.00. ")
    assert masks.startswith("Of 3 methods for `models/tiny` at 50% zeros, `mine` has the lowest")
    assert smaller == (
        "Of 2 smaller models of `models/tiny`, `ria@channels` has the lowest perplexity, 30.00 on "
        "`test.txt` with 8,000 parameters, before `block-influence@blocks` with 40.00."
    )


def test_one_mask_is_not_said_to_be_the_best_beside_better_smaller_models(tmp_path: Path) -> None:
    rows = [*WITH_SMALLER[:2], *WITH_SMALLER[4:]]
    assert text_of(write_comparison(tmp_path / "table.json", rows)).startswith(
        "The only method for `models/tiny` at 50% zeros, `wanda`, has perplexity 60.00 on "
        "`test.txt`; the dense model has 20.00. Of 2 smaller models of"
    )


def test_equal_perplexities_are_level(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "t.json", [ROWS[1], {**ROWS[2], "perplexity": 60.0}])
    assert "60.00 on `test.txt`, level with `mine` with 60.00." in text_of(table)


def test_measurements(tmp_path: Path) -> None:
    assert text_of(write_evaluation(tmp_path / "a.json")) == (
        "`models/pruned` has perplexity 44.50 on `test.txt`."
    )
    texts = [{"perplexity": 7.0, "text": windows("a")}, {"perplexity": None, "text": windows("b")}]
    assert text_of(write_evaluation(tmp_path / "d.json", losses=None, text=None, texts=texts)) == (
        "`models/pruned` has perplexity 7.00 on `a`, perplexity overflow on `b`."
    )
    speed = write_evaluation(tmp_path / "b.json", losses=None, text=None)
    assert text_of(speed) == (
        "`models/pruned` has 8,000 parameters and decodes 31.2 tokens a second."
    )
    tasks = write_evaluation(tmp_path / "c.json", losses=None, text=None, speed=None)
    assert text_of(tasks) == "`models/pruned` was measured in 1 tasks."
