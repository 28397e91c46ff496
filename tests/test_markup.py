"""Elements: any text that is put into them reads back unchanged."""

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pruner_zero.markup import element

READABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")).filter(lambda c: c < "\ufffe"))


@given(READABLE, READABLE)
def test_text_and_attributes_read_back(text: str, value: str) -> None:
    read = ElementTree.fromstring(element("text", text, class_=value))
    assert (read.text or "", read.get("class")) == (text, value)


@given(st.text())
def test_no_text_whatever_breaks_the_document(text: str) -> None:
    ElementTree.fromstring(element("text", text, aria_label=text))


def test_children_that_are_elements_are_kept() -> None:
    inner = element("b", "<i>")
    assert element("p", "a & ", inner) == Markup("<p>a &amp; <b>&lt;i&gt;</b></p>")


def test_names_and_numbers_of_attributes() -> None:
    rectangle = element(
        "rect", class_="a", stroke_width=1.5, x=2.0, y=0.333333, viewBox=7, hidden=None
    )
    assert rectangle == Markup(
        '<rect class="a" stroke-width="1.5" x="2" y="0.33" viewBox="7"></rect>'
    )
