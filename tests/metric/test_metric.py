"""A metric from anything that can mean one, and errors that name what to change."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import Expression
from pruner_zero.metric.grammar import from_tree, parse
from pruner_zero.metric.metric import NAMED, Metric
from pruner_zero.metric.operators import Shape
from pruner_zero.metric.scoring import score
from tests.metric.strategies import expressions, lightly, matrices, terminals_of
from tests.metric.test_grammar import RELEASED

PUBLISHED, W = Metric(parse("abs(W * W) * mms(G)")), parse("W")


def test_everything_that_means_the_published_metric(tmp_path: Path) -> None:
    path = tmp_path / "best_tree.json"
    path.write_text(RELEASED)
    path_with_mark = tmp_path / "tree"
    path_with_mark.write_bytes(b"\xef\xbb\xbf" + RELEASED.encode())
    files = path, str(path), path_with_mark, str(path_with_mark)
    tree = json.loads(RELEASED)
    for spec in (PUBLISHED, PUBLISHED.expression, "abs(W*W) * mms(G)", tree, *files):
        assert Metric.of(spec) == PUBLISHED
    assert Metric.of("pruner-zero") == Metric(PUBLISHED.expression, name="pruner-zero")
    assert PUBLISHED.needs == {"W", "G"}
    assert str(PUBLISHED) == "abs(W * W) * mms(G)"
    assert PUBLISHED.latex == r"\left|W \cdot W\right| \cdot \operatorname{mms}(G)"


@lightly
@given(expressions())
def test_json_keeps_expression_name_and_scope(expression: Expression) -> None:
    if expression.shape is not Shape.MATRIX:
        return
    for metric in (Metric(expression), Metric(expression, "mine", "global")):
        assert Metric.of(json.loads(metric.to_json())) == metric
        assert Metric.of(metric.to_tree()) == metric
        assert pickle.loads(pickle.dumps(metric)) == metric


@pytest.mark.parametrize(
    ("spec", "metric"),
    [
        ({"data": "W", "name": "mine", "scope": "row"}, Metric(W, "mine", "row")),
        ("W * X@global", Metric(parse("W * X"), scope="global")),
        (" wanda @ global ", Metric(parse("W * X"), "wanda", "global")),
        # Words with hyphens can be differences.
        ("W-X", Metric(parse("W - X"))),
        ("W-1", Metric(W - 1)),
    ],
)
def test_names_and_scopes(spec: str | dict[str, object], metric: Metric) -> None:
    assert Metric.of(spec) == metric
    assert ("name" in metric.to_tree(), "scope" in metric.to_tree()) == (
        metric.name is not None,
        metric.scope is not None,
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (" + ".join(["X"] * 90), f"`{'X + ' * 19}X +…` gives no value per weight"),
        ({"data": "W", "scope": "rows"}, "unknown scope 'rows': did you mean 'row'?"),
        ("X + 1", "`X + 1.0` gives no value per weight: it needs W, G or S"),
        ("div(X, W)", "`div(X, W)` gives no value per weight: it reduces W to one number"),
        ("wnda", "unknown metric 'wnda': did you mean 'wanda'?"),
        ("w", "unknown metric 'w': did you mean 'W'?"),
        ("W * Y(X)", "column 5: unknown operator 'Y': known: "),
        ("W +", "column 4: expected a terminal"),
        ("W * X@rows", "unknown scope 'rows': did you mean 'row'?"),
        ("W * X@", "unknown scope '': "),
        ("W@row * X", "unknown scope 'row * X': "),
        ("nowhere/tree.json", "nowhere/tree.json: no such file"),
        ("a\0.json", "a\0.json: cannot be read (embedded null byte)"),
        ({"data": "W", "scope": 3}, "root: scope must be a text"),
        ({"data": "mms", "left": {"data": "W", "scope": "row"}}, "left: unknown key 'scope'"),
    ],
)
def test_errors(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(PrunerZeroError) as caught:
        Metric.of(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "invalid JSON"),
        (b'{"data": "W",}', "invalid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"data": "mul", "left": {"data": "W"}}', "root: mul needs left and right"),
        (b'["W"]', "root: expected an object"),
        (b"[" * 100_000, "the tree is nested deeper than 100 levels"),
        (b" " * 10_000_001, "larger than 10 MB"),
    ],
)
def test_errors_of_files_name_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tree.json"
    path.write_bytes(content)
    with pytest.raises(PrunerZeroError) as caught:
        Metric.of(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_tree_file_and_hides_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("wanda", "W", "tree.json"):
        (tmp_path / name).mkdir()
    assert Metric.of("wanda").name == "wanda"
    assert str(Metric.of("W")) == "W"
    with pytest.raises(PrunerZeroError, match=r"^tree\.json: cannot be read \(Is a directory\)$"):
        Metric.of("tree.json")


def test_a_notebook_shows_name_and_scope_below_the_formula() -> None:
    shown = Metric(Metric.of("wanda").expression, "<mine>", "row")._repr_html_()
    assert shown.startswith("<div><div><math ")
    assert shown.endswith("<div>&lt;mine&gt; @row</div>")


@pytest.mark.parametrize("spec", [None, 5, ["W"], b"W"], ids=repr)
def test_a_metric_is_made_of_nothing_else(spec: Any) -> None:
    with pytest.raises(PrunerZeroError, match="a metric is a name, expression, tree or file, not"):
        Metric.of(spec)


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
    "fisher": lambda W, F, **_: F.sqrt() * W / W.square().sum(0).sqrt(),
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
