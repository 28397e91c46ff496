"""The canonical form keeps the order inside every group, and equal masks share it."""

import itertools
from collections.abc import Mapping
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruner_zero.choices import Group
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal, call
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import NAMED
from pruner_zero.metric.operators import OPERATORS, Shape
from pruner_zero.metric.scoring import ScoreError, score
from tests.metric.strategies import expressions, lightly, tame, terminals, terminals_of

WIDTH = 7
GROUPS: tuple[Group, ...] = get_args(Group)
scopes = st.sampled_from(GROUPS)
often = settings(lightly, max_examples=200)
# A quotient by zero is near fp32's end: the order of its factors decides whether it is passed.
bounded = expressions([name for name in OPERATORS if name != "quotient"], leaves=tame)
anything = st.one_of(expressions(), expressions(leaves=tame), expressions(leaves=terminals))


def values(expression: Expression, inputs: Mapping[str, Tensor], noise: float = 0.0) -> Tensor:
    """The expression in float64, with relative `noise` after every step."""
    generator = torch.Generator().manual_seed(0)

    def value(node: Expression) -> Tensor:
        if isinstance(node, Terminal):
            return inputs[node.name]
        if isinstance(node, Constant):
            return torch.tensor([[node.value]], dtype=torch.float64)
        assert isinstance(node, Call)
        exact = node.operator.apply(*[value(operand) for operand in node.operands])
        random = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
        return exact * (1 + noise * random)

    return value(expression).expand(inputs["W"].shape).clone()


def doubles(rows: int, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    double = {name: t.double() * scale for name, t in terminals_of(rows, WIDTH, seed).items()}
    # Some exact zeros, as dead channels and pruned weights have them.
    for name in ("W", "S", "G"):
        double[name][0, 1] = 0
    double["X"][0, 2] = 0
    if seed % 2:
        double["W"][-1] = double["S"][-1] = 0
    return double


def grouped(matrices: list[Tensor], scope: Group) -> list[Tensor]:
    if scope == "row":
        return [row for matrix in matrices for row in matrix]
    if scope == "global":
        return [torch.cat([matrix.flatten() for matrix in matrices])]
    if scope == "unit":
        return [(matrix * matrix.abs()).sum(0) for matrix in matrices]
    return [matrix.flatten() for matrix in matrices]


def compared(group: Tensor, rough: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sign of every pairwise difference, where rounding cannot cause it, and where it is 0."""
    difference = group[:, None] - group[None]
    size = torch.maximum(group.abs()[:, None], group.abs()[None])
    error = (rough - group).abs()
    error = error[:, None] + error[None]
    clear = difference.abs() > 1e-6 * size + 1e3 * error
    return difference.sign(), clear, (difference == 0) & (error <= 1e-9 * size)


def assert_same_order(expression: Expression, form: Expression, scope: Group, seed: int) -> None:
    samples = [doubles(4, seed), doubles(3, seed + 1, scale=1.7)]
    exact = [values(expression, tensors) for tensors in samples]
    usable = all(matrix.isfinite().all() and matrix.abs().max() < 1e100 for matrix in exact)
    if not usable:
        return
    rounds = [
        grouped([values(e, tensors, noise) for tensors in samples], scope)
        for e in (expression, form)
        for noise in (0.0, 1e-12)
    ]
    for a, rough_a, b, rough_b in zip(*rounds, strict=True):
        sign_a, clear_a, same_a = compared(a, rough_a)
        sign_b, clear_b, same_b = compared(b, rough_b)
        both = clear_a & clear_b
        assert (sign_a[both] == sign_b[both]).all(), (str(expression), str(form))
        # Ties stay ties and differences stay differences, but for a pair that rounding ties.
        assert (same_a & clear_b).double().mean() < 0.1, (str(expression), str(form))
        broken = same_b & clear_a
        if scope == "row" and str(expression).count("row_odds") > str(form).count("row_odds"):
            # row_odds breaks the ties of its row, all in the order of the columns.
            assert len(sign_a.triu()[broken.triu()].unique()) <= 1, (str(expression), str(form))
        else:
            assert broken.double().mean() < 0.1, (str(expression), str(form))


@often
@given(expression=anything, scope=scopes, seed=st.integers(0, 2**31))
def test_the_order_inside_every_group_stays(
    expression: Expression, scope: Group, seed: int
) -> None:
    assert_same_order(expression, canonical(expression, scope), scope, seed)


@pytest.mark.parametrize("scope", GROUPS)
@pytest.mark.parametrize("name", NAMED)
def test_the_order_of_known_metrics_stays(name: str, scope: Group) -> None:
    expression = parse(NAMED[name].text)
    for seed in range(3):
        assert_same_order(expression, canonical(expression, scope), scope, seed)


@often
@example(parse("sqrt(G / D)"), "unit")
@given(expression=anything, scope=scopes)
def test_the_form_is_its_own_form_and_never_larger(expression: Expression, scope: Group) -> None:
    form = canonical(expression, scope)
    assert canonical(form, scope) == form
    assert form.size <= expression.size


@often
@given(expression=bounded, scope=scopes, seed=st.integers(0, 2**31))
@example(expression=parse("div(G, 2^-126)"), scope="row", seed=0)
@example(expression=parse("W * 2^2000"), scope="row", seed=0)
def test_a_rejected_score_does_not_share_the_form_of_a_usable_one(
    expression: Expression, scope: Group, seed: int
) -> None:
    inputs = terminals_of(5, 8, seed)
    form = canonical(expression, scope)
    try:
        score(expression, inputs)
    except ScoreError as error:
        # Equal scores that rounding separates are no loss; nan and infinities would be.
        if "finite" in str(error) and form.shape is Shape.MATRIX:
            with pytest.raises(ScoreError):
                score(form, inputs)


def table(text: str) -> list[list[str]]:
    """The expressions of each paragraph, between bars."""
    return [[cell.strip() for cell in part.split("|")] for part in text.split("\n\n")]


# A paragraph for each mask.
PER_ROW = table("""
abs(W * W) * mms(G) | mms(G) * abs(W * W) | W * sqrt(mms(G)) | W * mms(G)^0.5
| sqr(W) * mms(3 * G) | pow(S) * mms(G) | mms(mms(abs(W * W) * mms(G))) | log(W * sqrt(mms(G)))
| zsn(div(W * W * mms(G), G)) - 2 | row_share(W * W) * mms(G)

W * X | X * W | sqr(W) * sqr(X) | log(W * X) | 3 * W * X | W * X * 2 + 1 | abs(S) * X
| row_share(W) * X | row_normalize(W) * row_share(X) | sqrt(W) * X^0.5 | neg(neg(skp(W))) * X
| abs(neg(W * X)) | W * X + X * W | 0 - (0 - W * X) | W * X * O | sqr(O * X) * sqr(W)
| log(O^0.25 * mms(W * O * X))

sqr(W) / sqr(D) | W / D | S * S * D^-2

W * X + W * G | X * W + W * G | G * W - X * -W | W * X + G * sqrt(W) * sqrt(W)

W * (X + G) | 2 * (G + X) * row_share(W)

(row_share(W) + column_share(W)) * X^0.5 | sqrt(X) * (column_share(abs(S)) + row_share(W))

W | sqr(W) | W + W | W * W / 2 | W + 2 | W^1

neg(W) | 0 - W | 1 - W | -sqr(W) | -mms(W) | mms(-W)

mms(G) * W | W * mms(G) | W * mms(2 * G)

W * mms(-G) | W * mms(-3 * G)
""")


def test_equal_masks_per_row_are_found_and_other_masks_stay_apart() -> None:
    forms = [{canonical(parse(text), "row") for text in texts} for texts in PER_ROW]
    assert [texts[0] for texts, found in zip(PER_ROW, forms, strict=True) if len(found) > 1] == []
    assert len(set.union(*forms)) == len(PER_ROW)


@pytest.mark.parametrize(
    ("scope", "first", "second"),
    [
        ("matrix", "mms(W * X)", "W * X"),
        ("block", "div(W, G)", "W"),
        ("matrix", "zsn(W) + 3", "W"),
        ("row", "row_share(X) * W", "X * W"),
        ("global", "3 * sqr(W) + 1", "W"),
        ("global", "W + log(2)", "W"),
        ("global", "log(W * X)", "W * X"),
        ("global", "row_odds(sqr(W * X) * O) * P", "row_odds(W * X) * P"),
        ("global", "row_odds(3 * row_share(W))^0.5", "row_odds(W)"),
        ("row", "row_odds(row_odds(W * X) * P)", "W * X"),
        ("matrix", "W * O * P", "W * O"),
    ],
)
def test_equal_masks_in_other_scopes_share_a_form(scope: Group, first: str, second: str) -> None:
    assert canonical(parse(first), scope) == canonical(parse(second), scope)


DIFFERENT: dict[tuple[Group, str], list[list[str]]] = {
    ("row", "W"): table("""
        neg(W) | S | W * (O - 1) | W / O | W * mms(O) | W + O | -W * O | W * column_share(W * O)
        | W * small(G) | column_share(W) | W^16 | W * 1e38 * 1e38 | W * 1e-300 | W + 1e6
        | div(W, W - W) | div(W, small(G)) | mms(exp(W)) | max(W, 1)
    """),
    ("row", "W * X"): table("exp(W * X) | tanh(X * W)"),
    ("row", "W * G"): table("mms(G) * W | W * G^0.5 | log(W * W * G * G)"),
    ("row", "W * mms(G)"): table("zsn(G) * W"),
    ("row", "W - G"): table("G - W"),
    ("row", "quotient(W, X)"): table("W * X^-1"),
    ("row", "G"): table("W / W * G"),
    ("row", "W * G^16"): table("W^0.25 * G^4"),
    ("row", "zsn(X) * W"): table("zsn(W - W + X) * W"),
    ("matrix", "W"): table("W * O | row_share(W)"),
    ("block", "W"): table("W * O"),
    ("block", "W * X"): table("row_normalize(W) * X"),
    ("matrix", "row_odds(W)"): table("W | row_odds(S)"),
    ("global", "W"): table("W * P | row_odds(W) | W * O | mms(W) | div(W, G) | W + small(G)"),
    ("global", "W * G"): table("W * mms(G)"),
}


@pytest.mark.parametrize(
    ("scope", "first", "second"),
    [(*key, other) for key, [others] in DIFFERENT.items() for other in others],
)
def test_what_can_differ_is_not_merged(scope: Group, first: str, second: str) -> None:
    assert canonical(parse(first), scope) != canonical(parse(second), scope)


def test_the_forms_read_well() -> None:
    assert canonical(parse("S * O"), "row") == parse("S")
    for text, form in {
        "abs(W*W) * mms(G)": "W * sqrt(mms(G))",
        "sqr(W) * G * X": "W * sqrt(G * X)",
        "W*X + W*G": "G * W + W * X",
        "1 - sqr(W)": "-W",
        "X / D * W": "W * X / D",
        "W^0.4 * G^0.8 * X^1.6": "G * sqr(X) * sqrt(W)",
    }.items():
        assert canonical(parse(text), "row") == parse(form)


@pytest.mark.parametrize(
    ("scope", "can", "cannot"),
    [
        ("row", ["W * X"], ["X", "O", "X * O", "W - W", "3"]),
        ("matrix", ["X * O"], ["W - S + S - W + X"]),
        ("global", [], ["O", "small(W) + 2"]),
    ],
)
def test_the_form_has_a_value_per_weight_where_it_can_mask(
    scope: Group, can: list[str], cannot: list[str]
) -> None:
    assert all(canonical(parse(text), scope).shape is Shape.MATRIX for text in can)
    assert all(canonical(parse(text), scope).shape is not Shape.MATRIX for text in cannot)


@pytest.mark.parametrize("text", ["3", "W - W", "W * (2 - 2)", "small(G)", "div(2, G)", "0 * X"])
@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_terms_constant_over_every_group_become_zero(text: str, scope: Group) -> None:
    assert canonical(parse(text), scope) == Constant(0)


def test_a_form_beyond_the_limits_is_the_expression_itself() -> None:
    deep: Expression = Terminal("W")
    for _ in range(99):
        deep = call("min" if deep.depth % 2 else "mul", Terminal("W"), deep)
    assert canonical(deep, "row").depth <= deep.depth


@pytest.mark.parametrize("scope", GROUPS)
@pytest.mark.parametrize(
    "text",
    [
        "sqr(row_share(D / -D)) + W",
        "zsn(W - W + X) * W",
        "abs(column_share(X - W + W)) * G",
        "log(1e154 * 1e154) * W",
    ],
)
def test_statistics_keep_the_shape_they_are_taken_over(text: str, scope: Group) -> None:
    form = canonical(parse(text), scope)
    assert canonical(form, scope) == form
    for seed in range(4):
        assert_same_order(parse(text), form, scope, seed)


def test_the_order_of_terms_does_not_matter() -> None:
    parts = [parse(text) for text in ("W * X", "G^0.5", "W", "3 * G^0.5 * X")]
    orders = list(itertools.permutations(parts))
    sums = {canonical(a + (b - (c + d)), "global") for a, b, c, d in orders}
    assert len(sums | {canonical((a - c) + b - d, "global") for a, b, c, d in orders}) == 6
    for name in ("min", "max"):
        pairs = (parse(f"{name}({pair})") for pair in ("W, G * X", "G * X, W"))
        assert len({canonical(pair, "row") for pair in pairs}) == 1


def test_an_unknown_scope_is_named() -> None:
    with pytest.raises(PrunerZeroError, match="did you mean 'matrix'"):
        canonical(Terminal("W"), "matrx")  # type: ignore[arg-type]
