"""Formulas: what MathML a tree becomes, and that every tree becomes some."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given

from pruner_zero.metric import Expression, parse, to_latex
from pruner_zero.metric.mathml import to_mathml
from tests.metric.strategies import expressions

SCHEMAS = {"mfrac": 2, "msup": 2, "msub": 2, "msqrt": None, "mrow": None, "math": None}


def spoken(element: ElementTree.Element) -> str:
    """The formula in plain characters, with what is set above or below in braces."""
    inside = [spoken(child) for child in element]
    match element.tag:
        case "mfrac":
            return f"{{{inside[0]}}}/{{{inside[1]}}}"
        case "msup":
            return f"{inside[0]}^{{{inside[1]}}}"
        case "msub":
            return f"{inside[0]}_{{{inside[1]}}}"
        case "msqrt":
            return f"√{{{''.join(inside)}}}"
    return (element.text or "") + "".join(inside)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("W * X + W * G", "W⋅X+W⋅G"),
        ("(W + X) * G", "(W+X)⋅G"),
        ("W - (X - G)", "W−(X−G)"),
        ("W / (X + G)", "{W}/{X+G}"),
        ("div(W, X)", "{W}/{‖X‖_{F}}"),
        ("sqr(W * X)", "(W⋅X)^{2}"),
        ("S^0.5", "|S|^{0.5}"),
        ("W^0.5", "W^{0.5}"),
        ("sqrt(S)", "√{|S|}"),
        ("sqrt(W + X)", "√{W+X}"),
        ("log(W)", "ln\u2061(W+0.001)"),
        ("exp(W)", "e^{min\u2061(W,100)}"),
        ("abs(W * W) * mms(G)", "|W⋅W|⋅mms\u2061(G)"),
        ("row_share(W)", "row\u00a0share\u2061(W)"),
        ("max(W, X)", "max\u2061(W,X)"),
        ("neg(W + X)", "−(W+X)"),
        ("W * (-2)", "W⋅(−2)"),
        ("W + 1e-30", "W+1⋅10^{−30}"),
        ("(W * 1e-30)^2", "(W⋅(1⋅10^{−30}))^{2}"),
        ("skp(W) * X", "W⋅X"),
    ],
)
def test_what_is_read(text: str, formula: str) -> None:
    assert spoken(ElementTree.fromstring(to_mathml(parse(text)))) == formula


@given(expressions())
def test_every_expression_is_well_formed(expression: Expression) -> None:
    math = ElementTree.fromstring(to_mathml(expression))
    assert math.get("alttext") == to_latex(expression)
    for element in math.iter():
        assert element.tag in SCHEMAS or (element.text and not len(element)), element.tag
        if SCHEMAS.get(element.tag) is not None:
            assert len(element) == SCHEMAS[element.tag]
