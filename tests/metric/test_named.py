"""Every known metric equals its formula written by hand in torch."""

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from pruner_zero.metric import NAMED, Metric, from_tree, score
from tests.metric.strategies import lightly, matrices, terminals_of
from tests.metric.test_tree_json import RELEASED


def pruner_zero(W: Tensor, G: Tensor, **_: Tensor) -> Tensor:
    return (W * W).abs() * ((G - G.min()) / (G.max() - G.min()))


def z_pruner(W: Tensor, X: Tensor, S: Tensor, **_: Tensor) -> Tensor:
    by_row = S / S.norm(dim=1, keepdim=True)
    by_column = S / S.norm(dim=0, keepdim=True)
    z_row = (by_row - by_row.mean()) / by_row.std()
    z_column = (by_column - by_column.mean()) / by_column.std()
    small = (W / W.mean() < 0.1).float().mean()
    alpha = 0.7 * (1 - 0.3 * small)
    result: Tensor = (alpha * z_row.abs() ** 3 + (1 - alpha) * z_column.abs() ** 3) * X**1.5
    return result


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "magnitude": lambda W, **_: W,
    "wanda": lambda W, X, **_: W * X,
    "gblm": lambda W, G, X, **_: W * X + W * G,
    "ria": lambda W, X, **_: (W / W.sum(1, keepdim=True) + W / W.sum(0)) * X.sqrt(),
    "sparsegpt-score": lambda W, D, **_: W**2 / D**2,
    "pruner-zero": pruner_zero,
    "z-pruner": z_pruner,
}


@pytest.mark.parametrize("name", FORMULAS)
@lightly
@given(tensors=matrices(least=2))
def test_the_expression_is_the_formula(name: str, tensors: dict[str, Tensor]) -> None:
    result = Metric.of(name).score(tensors)
    torch.testing.assert_close(result, FORMULAS[name](**tensors), rtol=1e-4, atol=1e-6)


def test_the_released_tree_scores_exactly_as_its_formula() -> None:
    tensors = terminals_of(16, 24, seed=3)
    expected = pruner_zero(**tensors)
    released = from_tree(json.loads(RELEASED))
    assert torch.equal(score(released, tensors), expected)
    assert Metric.of("pruner-zero").expression == released


def test_every_name_has_its_formula_description_and_source() -> None:
    assert set(NAMED) == set(FORMULAS)
    for name, metric in NAMED.items():
        assert metric.name == name
        assert all(text and "\n" not in text for text in (metric.description, metric.citation))
