"""Expressions as mathematics."""

import pytest
from hypothesis import given

from pruner_zero.metric import Expression, parse, to_latex
from tests.metric.strategies import expressions, lightly


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("abs(W)", r"\left|W\right|"),
        ("abs(W * W) * mms(G)", r"\left|W \cdot W\right| \cdot \operatorname{mms}(G)"),
        ("sqrt(W)", r"\sqrt{W}"),
        ("sqrt(S)", r"\sqrt{\left|S\right|}"),
        ("log(S)", r"\ln\left(\left|S\right| + 0.001\right)"),
        ("log(W)", r"\ln\left(W + 0.001\right)"),
        ("exp(W)", r"e^{\min\left(W, 100\right)}"),
        ("tanh(W)", r"\tanh(W)"),
        ("sqr(W) / sqr(D)", r"\frac{W^{2}}{D^{2}}"),
        ("sqr(W + G)", r"(W + G)^{2}"),
        ("sqr(sqr(W))", r"\left(W^{2}\right)^{2}"),
        ("sqr(-W)", r"(-W)^{2}"),
        ("pow(abs(S))", r"\left|S\right|^{2}"),
        ("X^0.5", "X^{0.5}"),
        ("S^0.5", r"\left|S\right|^{0.5}"),
        ("(W / X)^-1", r"\left(\frac{W}{X}\right)^{-1}"),
        ("div(W, X)", r"\frac{W}{\lVert X\rVert_F}"),
        ("W - (G - X)", "W - (G - X)"),
        ("W - G - X", "W - G - X"),
        ("W * (G + 1)", r"W \cdot (G + 1)"),
        ("-(W * X)", r"-\left(W \cdot X\right)"),
        ("W * -2", r"W \cdot -2"),
        ("1e-05 * W", r"1 \cdot 10^{-5} \cdot W"),
        ("skp(W) * X", r"W \cdot X"),
        ("max(W, G)", r"\max(W, G)"),
        ("row_share(W)", r"\operatorname{row\,share}(W)"),
    ],
)
def test_mathematics(text: str, latex: str) -> None:
    assert to_latex(parse(text)) == latex


@lightly
@given(expressions())
def test_braces_and_delimiters_are_balanced(expression: Expression) -> None:
    latex = to_latex(expression)
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    assert "\n" not in latex
