"""Results as tables: printed, shown in a notebook, taken by pandas."""

import builtins
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pruner_zero import PrunerZeroError
from pruner_zero.table import MOST_SHOWN, Tabular, element


@dataclass(frozen=True, repr=False)
class Fruits(Tabular):
    shown: ClassVar[tuple[str, ...]] = ("name", "weight", "ripe", "remark")

    rows: tuple[dict[str, Any], ...]

    def caption(self) -> str:
        return f"{len(self.rows)} <fruits>"

    def to_rows(self) -> tuple[dict[str, Any], ...]:
        return self.rows


APPLE = {"name": "apple", "weight": 0.12345, "ripe": True, "hidden": [1, 2]}
PEAR = {"name": "<pear>", "weight": math.nan, "ripe": False}


def read(value: Tabular) -> ElementTree.Element:
    return ElementTree.fromstring(f"<page>{value._repr_html_()}</page>")


def test_it_prints_as_aligned_text_below_its_caption() -> None:
    lines = repr(Fruits((APPLE, PEAR))).splitlines()
    assert lines == ["2 <fruits>", "name    weight  ripe", "apple   0.1235  ✓", "<pear>"]


def test_a_notebook_sees_the_same_cells_with_everything_escaped() -> None:
    page = read(Fruits((APPLE, PEAR)))
    assert page[0].text == "2 <fruits>"
    assert [cell.text for cell in page.iter("th")] == ["name", "weight", "ripe"]
    assert [cell.text or "" for cell in page.iter("td")] == [
        *("apple", "0.1235", "✓"),
        *("<pear>", "", ""),
    ]


def test_a_column_that_no_row_fills_is_left_out_and_without_a_choice_all_are_shown() -> None:
    class All(Fruits):
        shown: ClassVar[tuple[str, ...]] = ()

    assert "remark" not in repr(Fruits((APPLE,)))
    assert "hidden" in repr(All((APPLE,)))


def test_long_tables_are_counted_and_long_cells_cut() -> None:
    many = Fruits(({"name": "x" * 500},) * (MOST_SHOWN + 7))
    assert repr(many).splitlines()[-1] == "… 7 more"
    assert len(list(read(many).iter("td"))) == MOST_SHOWN
    assert max(map(len, repr(many).splitlines())) == 120


def test_a_table_without_rows_is_its_caption() -> None:
    assert repr(Fruits(())) == "0 <fruits>"
    assert list(read(Fruits(())).iter("table")) == []


@pytest.mark.parametrize(
    ("value", "cell"), [(12345.6, "12,346"), (math.inf, "inf"), (1e-9, "1e-09"), ("a\nb", "a b")]
)
def test_cells(value: object, cell: str) -> None:
    assert repr(Fruits(({"name": value},))).splitlines()[-1] == cell


def test_pandas_gets_all_rows_and_columns() -> None:
    frame = Fruits((APPLE, PEAR)).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["name", "weight", "ripe", "hidden"]
    assert frame["weight"][0] == 0.12345


def test_without_pandas_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PrunerZeroError, match=r"pip install pandas, or take to_rows\(\) instead"):
        Fruits((APPLE,)).to_pandas()


READABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")).filter(lambda c: c < "\ufffe"))


@given(READABLE)
def test_text_reads_back(text: str) -> None:
    assert (ElementTree.fromstring(element("p", text)).text or "") == text


@given(st.text())
def test_no_text_whatever_breaks_the_document(text: str) -> None:
    ElementTree.fromstring(element("p", text))


def test_children_that_are_elements_are_kept() -> None:
    inner = element("b", "<i>")
    assert element("p", "a & ", inner) == Markup("<p>a &amp; <b>&lt;i&gt;</b></p>")
