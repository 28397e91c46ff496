"""Elements: any text that is put into them reads back unchanged."""

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pruner_zero.markup import element

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
