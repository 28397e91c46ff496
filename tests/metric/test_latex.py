"""Expressions as formulas: LaTeX, and the MathML made from it."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given

from pruner_zero.metric.expression import Expression
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.latex import to_mathml
from pruner_zero.metric.metric import NAMED
from tests.metric.strategies import expressions, lightly


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("abs(W * W) * mms(G)", r"\left|W \cdot W\right| \cdot \operatorname{mms}(G)"),
        ("sqrt(S)", r"\sqrt{\left|S\right|}"),
        ("log(S)", r"\ln\left(\left|S\right| + 0.001\right)"),
        ("log(W)", r"\ln\left(W + 0.001\right)"),
        ("exp(W)", r"e^{\min\left(W, 100\right)}"),
        ("tanh(W)", r"\operatorname{tanh}(W)"),
        ("sqr(W) / sqr(D)", r"\frac{W^{2}}{D^{2}}"),
        ("sqr(W + G)", r"(W + G)^{2}"),
        ("sqr(sqr(W))", r"\left(W^{2}\right)^{2}"),
        ("sqr(-W)", r"(-W)^{2}"),
        ("pow(abs(S))", r"\left|S\right|^{2}"),
        ("X^0.5", "X^{0.5}"),
        ("S^0.5", r"\left|S\right|^{0.5}"),
        ("(W / X)^-1", r"\left(\frac{W}{X}\right)^{-1}"),
        ("div(W, X)", r"\frac{W}{\left\lVert X\right\rVert_F}"),
        ("W - (G - X)", "W - (G - X)"),
        ("W * (G + 1)", r"W \cdot (G + 1)"),
        ("-(W * X)", r"-\left(W \cdot X\right)"),
        ("W * -2", r"W \cdot (-2)"),
        ("-2 * W", r"-2 \cdot W"),
        ("W - -G", r"W - (-G)"),
        ("W * (G / X)", r"W \cdot \frac{G}{X}"),
        ("1e-05 * W", r"1 \cdot 10^{-5} \cdot W"),
        ("skp(W) * X", r"W \cdot X"),
        ("row_share(W)", r"\operatorname{row\,share}(W)"),
    ],
)
def test_mathematics(text: str, latex: str) -> None:
    assert parse(text).latex == latex


MATHML = "{http://www.w3.org/1998/Math/MathML}"


def spoken(element: ElementTree.Element) -> str:
    """The formula in plain characters, with what is set above or below in braces."""
    inside = [spoken(child) for child in element]
    match element.tag.removeprefix(MATHML):
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
        ("W / (X + G)", "{W}/{X+G}"),
        ("div(W, X)", "{W}/{‖X‖_{F}}"),
        ("sqr(W * X)", "(W·X)^{2}"),
        ("sqrt(S)", "√{|S|}"),
        ("log(W)", "ln(W+0.001)"),
        ("exp(W)", "e^{min(W,100)}"),
        ("abs(W * W) * mms(G)", "|W·W|·mms(G)"),
        ("row_share(W)", "row\u00a0share(W)"),
        ("W * (-2)", "W·(−2)"),
        ("W + 1e-30", "W+1·10^{−30}"),
    ],
)
def test_the_formula_that_browsers_show(text: str, formula: str) -> None:
    assert spoken(ElementTree.fromstring(to_mathml(parse(text).latex))) == formula


@pytest.mark.parametrize("display", ["block", "inline"])
def test_known_metrics_are_well_formed_formulas(display: str) -> None:
    for metric in NAMED.values():
        text = to_mathml(parse(metric.text).latex, display)
        math = ElementTree.fromstring(text)
        assert math.get("display") == display
        assert "\\" not in spoken(math), "a LaTeX command is left over"
        assert "merror" not in text


@lightly
@given(expressions())
def test_every_formula_is_well_formed(expression: Expression) -> None:
    latex = expression.latex
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    assert "\n" not in latex
    math = ElementTree.fromstring(to_mathml(latex))
    for element in math.iter():
        wanted = {"mfrac": 2, "msup": 2, "msub": 2}.get(element.tag.removeprefix(MATHML))
        assert wanted in (None, len(element))
    assert "\\" not in spoken(math)
