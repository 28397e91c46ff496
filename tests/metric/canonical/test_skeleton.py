"""A skeleton: the canonical form apart from its exponents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner_zero.choices import Group
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.canonical.skeleton import Skeleton
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.scoring import score
from tests.metric.strategies import expressions


def skeleton(text: str, scope: Group = "global") -> Skeleton:
    return Skeleton(canonical(parse(text), scope), scope)


@pytest.mark.parametrize(
    ("text", "exponents"),
    [
        ("W", ()),
        ("W * G", (1.0,)),
        ("W * G^0.75", (0.75,)),
        ("W^2 * G^1.5", (0.75,)),
        ("sqrt(W) * G", (2.0,)),
        ("W^0.5 * (W * G)^2", (0.8,)),
        ("W * (O * X)^0.7", (0.7, 0.7)),
        ("S * G", (1.0,)),
        ("G * X^0.5", (0.5,)),
        ("W * X / D^0.5", (0.5, 1.0)),
        ("W + G^0.5 * X", (1.0, 0.5, 1.0)),
        ("X^0.5 * row_share(W * G^0.5)", (2.0, 0.5, 1.0)),
    ],
)
def test_the_exponents_are_those_relative_to_the_weights_at_the_root(
    text: str, exponents: tuple[float, ...]
) -> None:
    assert skeleton(text).exponents == pytest.approx(exponents)


def test_metrics_that_differ_in_exponents_alone_have_one_structure() -> None:
    alike = ["W * G", "W * G^0.75", "W^2 * G^1.5", "W^0.1 * G", "sqrt(W * G) * W"]
    assert len({skeleton(text).structure for text in alike}) == 1


@pytest.mark.parametrize("text", ["W / (G + 1)", "W + G", "W * X", "W", "W * G * X", "max(W, G)"])
def test_other_metrics_have_other_structures(text: str) -> None:
    assert skeleton(text).structure != skeleton("W * G").structure


def test_a_factor_that_may_be_negative_has_no_exponent() -> None:
    assert skeleton("zsn(W) * X").exponents == (1.0, 1.0)
    assert skeleton("zsn(W) * X").with_exponents((2.0, 3.0)) == canonical(
        parse("zsn(W^3) * X^2"), "global"
    )


def test_where_scores_are_summed_over_units_the_power_of_the_whole_counts() -> None:
    alike = [skeleton(text, "unit") for text in ("W * X", "W^2 * X^2", "sqrt(W * X)", "W * X^0.5")]
    assert {form.structure for form in alike} == {parse("W * X")}
    exponents = [(1, 1), (2, 2), (0.5, 0.5), (1, 0.5)]
    assert [form.exponents for form in alike] == [pytest.approx(pair) for pair in exponents]
    assert str(alike[0].with_exponents((2.0, 0.5))) == "sqr(W) * sqrt(X)"


def test_other_exponents_give_the_metric_with_them() -> None:
    assert str(skeleton("W * G^0.75").with_exponents((0.5,))) == "W * sqrt(G)"
    changed = skeleton("W * (O * X)^0.7").with_exponents((0.6, 0.9))
    assert changed == canonical(parse("W * O^0.6 * X^0.9"), "global")


def test_one_exponent_is_needed_for_each_factor() -> None:
    with pytest.raises(ValueError, match="2 exponents are needed, not 1"):
        skeleton("W * G * X").with_exponents((1.0,))


@given(expressions(), st.sampled_from(["row", "block", "matrix", "global", "unit"]))
def test_a_form_is_rebuilt_from_its_skeleton(text: object, scope: Group) -> None:
    """Its own exponents give a form with the same structure and the same exponents."""
    form = canonical(text, scope)  # type: ignore[arg-type]
    first = Skeleton(form, scope)
    again = Skeleton(first.with_exponents(first.exponents), scope)
    assert again.structure == first.structure
    assert again.exponents == pytest.approx(first.exponents)


def test_a_rebuilt_product_ranks_as_before() -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.rand(*shape, generator=generator) + 0.1
        for name, shape in {"W": (6, 9), "G": (6, 9), "X": (1, 9), "O": (6, 1)}.items()
    }
    for text in ("W^2 * G^1.5", "sqrt(W) * (O * X)^0.4", "X^0.5 * row_share(W * G^0.5)"):
        form = skeleton(text)
        before = score(parse(text), tensors).flatten().argsort()
        after = score(form.with_exponents(form.exponents), tensors).flatten().argsort()
        assert torch.equal(before, after)


def test_the_structure_of_a_deep_expression_is_found_at_once() -> None:
    """Nested sorting once doubled the time with every level."""
    text = "W"
    for _ in range(20):
        text = f"row_share({text}) * X"
    deep = skeleton(text)
    assert deep.with_exponents([1.0] * len(deep.exponents)) == deep.structure
